"""Batches of images, by Grain: the same stream for any number of threads, hosts and devices."""

from collections.abc import Iterator

import grain
import jax
import numpy as np

from aa_flax.data.sources import Source
from aa_flax.errors import InputError

# A batch: `image` uint8 (N, H, W, 3), `label` int (N,); for evaluation also `index` int (N,), the
# image's place in the source, and `mask` bool (N,), False for the padding of the last batch.
Batch = dict[str, np.ndarray]

_READ = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Full batches in an epoch; the images left over rotate from epoch to epoch."""
    steps = len(source) // batch_size
    if steps == 0:
        raise InputError(
            f"batch_size {batch_size} is larger than the training set ({len(source)} images); "
            "give a smaller --config.batch_size"
        )
    return steps


def training_batches(
    source: Source, batch_size: int, *, seed: int, start_step: int = 0
) -> Iterator[Batch]:
    """Endless shuffled batches from step `start_step` on; each epoch has an order of its own.

    Args:
        batch_size: images in a batch over all hosts; each host yields its share of every batch.
        seed: with the step, it fixes every batch.
    """
    share = _share_of_host(batch_size)
    images = steps_per_epoch(source, batch_size) * batch_size
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle()[:images]
    mine = order[jax.process_index() :: jax.process_count()]
    dataset = mine.map(source.__getitem__).batch(share).repeat()
    return iter(dataset[start_step:].to_iter_dataset(_READ))


def evaluation_batches(source: Source, batch_size: int) -> Iterator[Batch]:
    """Every image once, in order; the last batch is filled up with masked copies of the last image.

    Args:
        batch_size: images in a batch over all hosts; each host yields its share.
    """
    share = _share_of_host(batch_size)
    count = -(-len(source) // batch_size) * batch_size

    def load(index):
        example = source[min(index, len(source) - 1)]
        return {**example, "index": index, "mask": index < len(source)}

    mine = grain.MapDataset.range(count)[jax.process_index() :: jax.process_count()]
    return iter(mine.map(load).batch(share).to_iter_dataset(_READ))


def _share_of_host(batch_size: int) -> int:
    if batch_size % jax.device_count():
        raise InputError(
            f"batch_size {batch_size} does not divide among {jax.device_count()} devices"
        )
    return batch_size // jax.process_count()
