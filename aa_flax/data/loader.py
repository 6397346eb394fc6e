"""Batches of images, by Grain: the same stream for any number of workers, hosts and devices."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from PIL import Image

from aa_flax.config import Config
from aa_flax.data.crops import evaluation_image
from aa_flax.data.sources import Example, Source
from aa_flax.errors import InputError

# A batch: `image` uint8 (N, H, W, 3) and `label` int32 (N,).
# For evaluation also `index` int (N,), the image's place in the source, and `mask` bool (N,), False
# for the padding of the last batch. For training also `flip` bool (N,), if the recipe flips, and
# `offset` int32 (N, 2), if it shifts: where to crop on the device.
Batch = dict[str, np.ndarray]

AUGMENTATIONS = ("random_resized_crop", "center_crop", "random_shift")


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
    source: Source, batch_size: int, data: Config, *, seed: int, start_step: int = 0
) -> Iterator[Batch]:
    """Endless shuffled batches from step `start_step` on; each epoch has an order of its own.

    What is random about an image follows from the seed, the epoch and the image's place in the
    source alone, so the stream is the same for any number of workers.

    Args:
        batch_size: images in a batch over all hosts; each host yields its share of every batch.
        data: the config's `data`.
        seed: with the step, it fixes every batch.
    """
    if data.augmentation not in AUGMENTATIONS:
        raise InputError(
            f"unknown config.data.augmentation {data.augmentation!r}; known: "
            f"{', '.join(AUGMENTATIONS)}"
        )
    count = len(source)
    images = steps_per_epoch(source, batch_size) * batch_size
    order = grain.MapDataset.range(count).seed(seed).shuffle()
    order = order.map_with_index(lambda place, index: (place // count, index))[:images]
    mine = order[jax.process_index() :: jax.process_count()]
    load = partial(_training_example, source, data, seed)
    return _read(mine.map(load).repeat(), batch_size, data, start_step)


def evaluation_batches(
    source: Source, batch_size: int, data: Config, *, crop: int
) -> Iterator[Batch]:
    """Every image once, in order; the last batch is filled up with masked copies of the last image.

    Args:
        batch_size: images in a batch over all hosts; each host yields its share.
        data: the config's `data`.
        crop: side in pixels of the centre crop that is taken of each resized image.
    """
    count = -(-len(source) // batch_size) * batch_size
    mine = grain.MapDataset.range(count)[jax.process_index() :: jax.process_count()]
    return _read(mine.map(partial(_evaluation_example, source, data, crop)), batch_size, data)


def put_ahead(
    batches: Iterable[Batch], put: Callable[[Batch], Any], ahead: int = 1
) -> Iterator[tuple[Batch, Any]]:
    """Pairs of a batch and `put(batch)`, put on the devices while they still compute on others."""
    waiting = []
    for batch in batches:
        waiting.append((batch, put(batch)))
        if len(waiting) > ahead:
            yield waiting.pop(0)
    yield from waiting


def _training_example(source: Source, data: Config, seed: int, place: tuple[int, int]) -> Example:
    epoch, index = place
    rng = np.random.default_rng((seed, epoch, index))
    example = source[index]
    label = np.int32(example["label"])
    shifted = data.augmentation == "random_shift"
    size = data.image_size if shifted else data.crop_size
    image = evaluation_image(_pil(example), data.resize_size, size)
    extras = {}
    if shifted:
        extras["offset"] = rng.integers(0, size - data.crop_size + 1, 2, np.int32)
    if data.flip:
        extras["flip"] = rng.random() < 0.5
    return {"image": image, "label": label, **extras}


def _evaluation_example(source: Source, data: Config, crop: int, index: int) -> Example:
    example = source[min(index, len(source) - 1)]
    return {
        "image": evaluation_image(_pil(example), data.resize_size, crop),
        "label": np.int32(example["label"]),
        "index": index,
        "mask": index < len(source),
    }


def _pil(example: Example) -> Image.Image:
    image = example["image"]
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _read(
    examples: grain.MapDataset, batch_size: int, data: Config, start_step: int = 0
) -> Iterator[Batch]:
    share = _share_of_host(batch_size)
    workers = data.num_workers or os.cpu_count() or 1
    read = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=share + 2 * workers)
    stop = min(len(examples), sys.maxsize)
    return iter(examples[start_step * share : stop].to_iter_dataset(read).batch(share))


def _share_of_host(batch_size: int) -> int:
    if batch_size % jax.device_count():
        raise InputError(
            f"batch_size {batch_size} does not divide among {jax.device_count()} devices"
        )
    return batch_size // jax.process_count()
