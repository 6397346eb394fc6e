"""Batches of images, by Grain: the same stream for any number of workers, hosts and devices."""

import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from multiprocessing import parent_process, resource_tracker
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from aa_flax.config import DataConfig
from aa_flax.data.examples import evaluation_example, training_example
from aa_flax.data.sources import Source
from aa_flax.errors import InputError, unknown

# A batch: `image` uint8 (N, H, W, 3) and `label` int32 (N,).
# For evaluation also `index` int (N,), the image's place in the source, and `mask` bool (N,): False
# for the padding of the last batch and for images that were skipped.
# For training also `flip` bool (N,), if the recipe mirrors images, and `offset` int32 (N, 2), if it
# shifts them: where to crop on the device.
Batch = dict[str, np.ndarray]

_KNOWN = {
    "augmentation": ("random_resized_crop", "center_crop", "random_shift"),
    "on_error": ("stop", "skip"),
    "worker_type": ("thread", "process"),
}


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Full batches in an epoch; the images left over rotate from epoch to epoch.

    Raises:
        InputError: fewer images than a batch has.
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
    """Endless shuffled batches from step `start_step` on; each epoch has an order of its own.

    What is random about an image follows from the seed, the epoch and the image's place in the
    source alone, so the stream is the same for any number of workers.

    Args:
        batch_size: images in a batch over all hosts; each host yields its share of every batch.
        data: the config's `data`.
        seed: with the step, it fixes every batch.

    Raises:
        InputError: a config that is wrong in itself or does not fit the source; and, later on, an
            image that cannot be read (with `data.on_error` "skip", another takes its place).
    """
    _check(data)
    count, steps = len(source), steps_per_epoch(source, batch_size)
    order = grain.MapDataset.range(count).seed(seed).shuffle()
    order = order.map_with_index(lambda place, index: (place // count, index))
    mine = _share_of_host(order, batch_size, steps).repeat()
    examples = mine.map(partial(training_example, source, data, seed))
    batches = _batches(examples, batch_size, data, start_step)
    return _until_done(batches, data, source, steps, start_step)


def evaluation_batches(
    source: Source, batch_size: int, data: DataConfig, *, crop: int
) -> Iterator[Batch]:
    """Every image once, in order; the last batch is filled up with masked copies of the last image.

    Args:
        batch_size: images in a batch over all hosts; each host yields its share.
        data: the config's `data`.
        crop: side in pixels of the centre crop that is taken of each resized image.

    Raises:
        InputError: a config that is wrong in itself; and, later on, an image that cannot be read
            (with `data.on_error` "skip" it is masked).
    """
    _check(data)
    steps = -(-len(source) // batch_size)
    mine = _share_of_host(grain.MapDataset.range(steps * batch_size), batch_size, steps)
    examples = mine.map(partial(evaluation_example, source, data, crop))
    return _until_done(_batches(examples, batch_size, data), data, source, steps)


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


def _check(data: DataConfig) -> None:
    """What would be taken for something else in silence; `check_config` checks a whole config."""
    for field, known in _KNOWN.items():
        value = getattr(data, field)
        if value not in known:
            raise InputError(unknown(f"config.data.{field}", value, list(known)))


def _share_of_host(order: grain.MapDataset, batch_size: int, steps: int) -> grain.MapDataset:
    """This host's examples of each epoch: of every batch the part that its devices hold.

    Put side by side in the order of the hosts, their batches are those of a single host.
    """
    share = batch_size // jax.process_count()
    first = jax.process_index() * share
    place = partial(_in_order, order, (batch_size, share, first, steps))
    return grain.MapDataset.range(steps * share).map_with_index(place)


def _in_order(order: grain.MapDataset, parts: tuple[int, int, int, int], place: int, _: int) -> Any:
    batch_size, share, first, steps = parts
    batch, row = divmod(place, share)
    epoch, step = divmod(batch, steps)
    return order[epoch * len(order) + step * batch_size + first + row]


def _batches(
    examples: grain.MapDataset, batch_size: int, data: DataConfig, start_step: int = 0
) -> grain.DatasetIterator:
    """Reads in threads an image at a time, or in processes a batch at a time."""
    if batch_size % jax.device_count():
        raise InputError(
            f"batch_size {batch_size} does not divide among {jax.device_count()} devices"
        )
    share = batch_size // jax.process_count()
    workers = data.num_workers or os.cpu_count() or 1
    if data.worker_type == "thread":
        read = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=share + 2 * workers)
        return iter(examples[start_step * share :].to_iter_dataset(read).batch(share))
    if not flags.FLAGS.is_parsed():  # Grain asks for its own flags
        flags.FLAGS.mark_as_parsed()
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    batches = examples.batch(share)[start_step:].to_iter_dataset(read)
    # Through pipes: what is in shared memory when Python ends is left there.
    pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    batches = grain.experimental.WithOptionsIterDataset(batches, pipes)
    processes = grain.MultiprocessingOptions(num_workers=workers)
    return iter(batches.mp_prefetch(processes, worker_init_fn=_end_with_parent))


def _end_with_parent(*_: int) -> None:
    """Runs in each process that reads: a command that is killed could not end it."""

    def wait():
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Processes started in here do not get the terminal's Ctrl-C, which goes to all of a command's.

    This process gets it at the end.
    """
    resource_tracker.ensure_running()  # starting it later would let Ctrl-C through again (CPython)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _until_done(
    batches: grain.DatasetIterator,
    data: DataConfig,
    source: Source,
    steps: int,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Batches; their threads or processes end once nobody holds this, or before Python does."""
    held = [batches]
    starting = unheard_by_children if data.worker_type == "process" else nullcontext
    reported = _report_skipped(_held(held, starting), source, steps, start_step)
    weakref.finalize(reported, lambda: held.pop().close())
    return reported


def _held(
    batches: list[grain.DatasetIterator], starting: Callable[[], AbstractContextManager]
) -> Iterator[Batch]:
    """What the one in the list yields, as long as it is there: no other place refers to it.

    Args:
        starting: the context of the first batch, with which all threads and processes start.
    """
    while batches:
        try:
            with starting():
                batch = next(batches[0])
        except StopIteration:
            return
        starting = nullcontext
        yield batch


def _report_skipped(
    batches: Iterable[Batch], source: Source, steps: int, start_step: int = 0
) -> Iterator[Batch]:
    """Names, at the end of each epoch, the images of this host that were skipped.

    Each is named once, however often the source is read.
    """
    told, skipped = _told_of(source), set()
    for step, batch in enumerate(batches, start_step + 1):
        indices = batch.pop("skipped")
        skipped.update(indices[indices >= 0].tolist())
        if len(skipped) == len(source):
            raise InputError(f"none of the {len(source)} images can be read: {source.name(0)}, ...")
        if step % steps == 0:
            _tell(sorted(skipped - told), source)
            told |= skipped
        yield batch


def _tell(skipped: list[int], source: Source) -> None:
    if skipped:
        names = "".join(f"\n  {source.name(i)}" for i in skipped)
        text = f"skipped images that cannot be read, {len(skipped)}:{names}"
        encoding = sys.stdout.encoding or "utf-8"  # names of files may be none of its texts
        tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding))


_TOLD: dict[int, set[int]] = {}  # by the id of a source: images that were named


def _told_of(source: Source) -> set[int]:
    if id(source) not in _TOLD:
        try:
            weakref.finalize(source, _TOLD.pop, id(source), None)
        except TypeError:  # of a class with slots; it may be told again
            return set()
        _TOLD[id(source)] = set()
    return _TOLD[id(source)]
