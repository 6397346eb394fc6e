"""Batches of images, by Grain: the same stream for any number of workers, hosts and devices."""

import operator
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from functools import partial
from itertools import count
from multiprocessing import parent_process, resource_tracker
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

from aa_flax.config import DataConfig
from aa_flax.data.classes import check_labels
from aa_flax.data.pixels import (
    ImageError,
    center_image,
    center_within,
    described,
    random_resized_crop,
)
from aa_flax.data.sources import Source
from aa_flax.errors import InputError, unknown

# A batch: `image` uint8 (N, H, W, 3) and `label` int32 (N,).
# For evaluation also `index` int (N,), the image's index in the source; `center` int32 (N, 2), the
# offset in it of the centre crop of `crop_size`; and `mask` bool (N,), False for the padding of the
# last batch and for images that were skipped.
# For training also `flip` bool (N,), if the recipe mirrors images, and `offset` int32 (N, 2), if it
# shifts them: where to crop on the device.
Batch = dict[str, np.ndarray]

_REPLACEMENTS = 20  # unreadable images in a row, after which something else is wrong


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Returns the full batches in an epoch; the remaining images rotate from epoch to epoch.

    Raises:
        InputError: there are fewer images than in one batch.
    """
    steps = len(source) // batch_size
    if steps == 0:
        raise InputError(
            f"batch_size {batch_size} is larger than the training set ({len(source)} images); "
            "give a smaller --config.batch_size"
        )
    return steps


def training_batches(
    source: Source, batch_size: int, data: DataConfig, *, seed: int, start_step: int = 0
) -> Iterator[Batch]:
    """Yields shuffled batches without end, from step `start_step` on; each epoch is reshuffled.

    An image's augmentation follows from the seed, the epoch and its index in the source alone, so
    the stream is the same for any number of workers.

    Args:
        batch_size: images in a batch over all hosts; each host yields its part of every batch.
        data: the config's `data`.
        seed: with the step, it determines every batch.

    Raises:
        InputError: the config does not fit the source or the devices; and, later on, an image
            cannot be read (with `data.on_error` "skip", another takes its place).
    """
    size, steps = len(source), steps_per_epoch(source, batch_size)
    order = grain.MapDataset.range(size).seed(seed).shuffle()
    order = order.map_with_index(lambda position, index: (position // size, index))
    examples = _part_of_host(order, batch_size, steps).repeat()
    examples = examples.map(partial(training_example, source, data, seed))
    return _batches(examples, batch_size, data, source, steps, start_step)


def evaluation_batches(
    source: Source, batch_size: int, data: DataConfig, *, crop: int
) -> Iterator[Batch]:
    """Yields every image once, in order; the last batch is padded with masked copies.

    Args and errors are those of `training_batches`; with `data.on_error` "skip", an image that
    cannot be read is masked. `crop` is the side in pixels of the centre crop of the resized image.
    """
    steps = -(-len(source) // batch_size)
    examples = _part_of_host(grain.MapDataset.range(steps * batch_size), batch_size, steps)
    examples = examples.map(partial(evaluation_example, source, data, crop))
    return _batches(examples, batch_size, data, source, steps)


def put_ahead(
    batches: Iterable[Batch], put: Callable[[Batch], Any], ahead: int = 1
) -> Iterator[tuple[Batch, Any]]:
    """Yields pairs of a batch and `put(batch)`, put while the devices compute on earlier ones."""
    waiting = []
    for batch in batches:
        waiting.append((batch, put(batch)))
        if len(waiting) > ahead:
            yield waiting.pop(0)
    yield from waiting


def training_example(
    source: Source, data: DataConfig, seed: int, place: tuple[int, int]
) -> dict[str, Any]:
    """Reads and augments an image, following from `seed` and `place`: (epoch, index).

    With `data.on_error` "skip", an image that cannot be read is replaced by the next that can, and
    `skipped` is its index (else -1).
    """
    epoch, index = place
    rng = np.random.default_rng((seed, epoch, index))
    image, label, skipped = _read_or_replace(source, data, index)
    if data.augmentation == "random_resized_crop":
        pixels = random_resized_crop(image, data.crop_size, rng)
    else:
        size = data.crop_size if data.augmentation == "center_crop" else data.image_size
        pixels = center_image(image, data.resize_size, size)
    example = {"image": pixels, "label": np.int32(label), "skipped": skipped}
    if data.augmentation == "random_shift":
        shifts = data.image_size - data.crop_size + 1
        example["offset"] = rng.integers(0, shifts, 2, np.int32)
    if data.flip:
        example["flip"] = rng.random() < 0.5
    return example


def _read_or_replace(source: Source, data: DataConfig, index: int) -> tuple[Image.Image, int, int]:
    """Returns an image, its label, and the index that it replaces, or -1."""
    for step in range(_REPLACEMENTS):
        try:
            return *read_example(source, (index + step) % len(source)), index if step else -1
        except ImageError as error:
            if data.on_error == "stop":
                raise error.skippable() from error
    raise ImageError(
        f"{_REPLACEMENTS} images in a row cannot be read, from {source.name(index)} on"
    )


def evaluation_example(source: Source, data: DataConfig, crop: int, index: int) -> dict[str, Any]:
    """Reads the centre of an image; `mask` is false beyond the last one, and if it is skipped.

    `center` is the offset in it of the centre crop of `data.crop_size` pixels: (top, left).
    """
    mask, skipped = index < len(source), -1
    index = min(index, len(source) - 1)
    try:
        image, label = read_example(source, index)
        center = center_within(image.size, data.resize_size, crop, data.crop_size)
        interpolation: Any = data.interpolation or "bilinear"
        pixels = center_image(image, data.resize_size, crop, interpolation)
    except ImageError as error:
        if data.on_error == "stop":
            raise error.skippable() from error
        pixels, center = np.zeros((crop, crop, 3), np.uint8), np.zeros(2, np.int32)
        label, mask, skipped = 0, False, index if mask else -1
    example = {"image": pixels, "center": center, "label": np.int32(label)}
    return example | {"index": index, "mask": mask, "skipped": skipped}


def read_example(source: Source, index: int) -> tuple[Image.Image, int]:
    """Reads an image in mode RGB and its label, and checks them: sources may be custom.

    Raises:
        ImageError: the image cannot be read.
        InputError: the source gives no image, or no label of its classes.
    """
    example = source[index]
    try:
        image, label = example["image"], operator.index(example["label"])
    except (TypeError, KeyError, IndexError) as error:
        raise InputError(
            f"{source.name(index)}: a source gives a dict of image and an integer label, got "
            f"{described(example)}"
        ) from error
    check_labels(np.array([label]), source.num_classes, lambda _: source.name(index))
    if isinstance(image, Image.Image) and image.mode == "RGB":
        return image, label
    is_rgb = isinstance(image, np.ndarray) and (image.dtype, image.shape[2:]) == (np.uint8, (3,))
    if is_rgb and image.size:
        return Image.fromarray(image), label
    raise InputError(
        f"{source.name(index)}: a source gives images as PIL images in mode RGB or uint8 arrays "
        f"(H, W, 3), got {described(image)}"
    )


def _part_of_host(order: grain.MapDataset, batch_size: int, steps: int) -> grain.MapDataset:
    """Returns this host's examples of each epoch: its consecutive part of every batch.

    Concatenated in the order of the hosts, their batches are those of a single host.
    """
    part = batch_size // jax.process_count()
    first = jax.process_index() * part

    def example(position: int, _: int) -> Any:
        batch, row = divmod(position, part)
        epoch, step = divmod(batch, steps)
        return order[epoch * len(order) + step * batch_size + first + row]

    return grain.MapDataset.range(steps * part).map_with_index(example)


def _batches(
    examples: grain.MapDataset,
    batch_size: int,
    data: DataConfig,
    source: Source,
    steps: int,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Reads batches in threads or processes, which end with the iterator or with Python."""
    for field in fields(DataConfig):  # `check_config` has checked a config, but not arguments
        known = field.metadata.get("known")
        if known and (value := getattr(data, field.name)) not in known:
            raise InputError(unknown(f"config.data.{field.name}", value, list(known)))
    if batch_size % jax.device_count():
        raise InputError(
            f"batch_size {batch_size} does not divide among {jax.device_count()} devices"
        )
    size, workers = batch_size // jax.process_count(), data.num_workers or os.cpu_count() or 1
    if data.worker_type == "thread":  # each reads one image at a time
        read = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=size + 2 * workers)
        batches = [iter(examples[start_step * size :].to_iter_dataset(read).batch(size))]
        starting = nullcontext
    else:
        batches = [_in_processes(examples.batch(size)[start_step:], workers)]
        starting = unheard_by_children
    reported = _report_skipped(batches, starting, source, steps, start_step)
    # Once: Grain's iterator cannot be closed by its destructor when Python has half ended.
    weakref.finalize(reported, lambda: batches.pop().close())
    return reported


def _in_processes(batches: grain.MapDataset, workers: int) -> grain.DatasetIterator:
    """Reads one batch at a time in each process."""
    if not flags.FLAGS.is_parsed():  # Grain reads its own flags
        flags.FLAGS.mark_as_parsed()
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    # Through pipes: shared memory that is in use when Python ends would never be freed.
    pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    piped = grain.experimental.WithOptionsIterDataset(batches.to_iter_dataset(read), pipes)
    processes = grain.MultiprocessingOptions(num_workers=workers)
    return iter(piped.mp_prefetch(processes, worker_init_fn=_end_with_parent))


def _end_with_parent(*_: int) -> None:
    """Ends a reading process with its parent: a command that is killed cannot do it."""

    def wait():
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Protects processes that are started inside from Ctrl-C, which a terminal sends to all.

    This process gets it at the end.
    """
    resource_tracker.ensure_running()  # starting it later would let Ctrl-C through again (CPython)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _report_skipped(
    batches: list[grain.DatasetIterator],
    starting: Callable[[], AbstractContextManager],
    source: Source,
    steps: int,
    start_step: int,
) -> Iterator[Batch]:
    """Logs, at the end of each epoch, the images of this host that were skipped, each once.

    `batches` has one iterator, which is removed when it is closed; `starting` is the context of the
    first batch, with which all threads and processes start.
    """
    named, skipped = _named(source), set()
    for step in count(start_step + 1):
        with starting():
            batch = next(batches[0], None)
        if batch is None:
            return
        starting = nullcontext
        indices = batch.pop("skipped")
        skipped.update(indices[indices >= 0].tolist())
        if len(skipped) == len(source):
            raise InputError(f"none of the {len(source)} images can be read: {source.name(0)}, ...")
        if step % steps == 0 and (new := sorted(skipped - named)):
            names = "".join(f"\n  {source.name(i)}" for i in new)
            text = f"skipped images that cannot be read, {len(new)}:{names}"
            encoding = sys.stdout.encoding or "utf-8"  # which may lack characters of file names
            tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding))
            named |= skipped
        yield batch


_NAMED: weakref.WeakKeyDictionary[Source, set[int]] = weakref.WeakKeyDictionary()


def _named(source: Source) -> set[int]:
    """Returns the images of a source that have been logged as skipped, to add to."""
    try:
        return _NAMED.setdefault(source, set())
    except TypeError:  # a class with slots or without a hash: its images are logged again
        return set()
