"""Checkpoints of a run, by Orbax: the two latest, the best by top-1, and every tenth epoch's.

If checksums show that a checkpoint is damaged, it is set aside and the one before is used; if one
cannot be read now, that is an error and nothing is changed.
"""

import gc
import json
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from logging import LogRecord
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from aa_flax.errors import InputError
from aa_flax.files import is_out_of_reach, parse_json, root_cause
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import is_main_process, log_line
from aa_flax.weights.train_state import TrainState, split_model, update_model

# Written by Orbax, and read here: Orbax's reader treats a file that cannot be opened as empty.
_DESCRIPTION = "_CHECKPOINT_METADATA"


class Record(NamedTuple):
    """Description of a checkpoint, stored in it with a checksum."""

    step: int  # updates made, and so the position in the data
    epoch: int  # epochs completed
    top1: float | None  # on the validation set, in percent; None: not evaluated (yet)
    checksums: dict[str, int]  # CRC-32 of each part of the state
    num_classes: int
    config: dict[str, Any]  # of the run


class Checkpoints:
    """A folder of checkpoints, each named by its step.

    A context manager: leaving it waits until the last one is written. The two latest are kept, so
    that there is one to go back to if the last is damaged. Every process of a run makes the same
    calls; one writes.

    Args:
        folder: made if absent.
        keep_every: epochs between checkpoints that are never removed.
        of_run: True for the run that writes to the folder: half-written checkpoints of a killed run
            are removed. Readers leave them, since a run may be writing them.
    """

    def __init__(self, folder: Path, *, keep_every: int = 10, of_run: bool = False):
        logging.get_absl_logger().addFilter(_is_not_of_orbax)
        self.folder = folder.resolve()
        self._keep_every = keep_every
        self._of_run = of_run
        self._open()

    def _open(self) -> None:
        self._checkpointer = ocp.training.Checkpointer(
            str(self.folder), preservation_policy=self, cleanup_tmp_directories=self._of_run
        )
        self._newer: set[int] = set()
        self._damaged: dict[int, str] = {}
        self._records: dict[int, Record] = {}
        for checkpoint in self._checkpointer.checkpoints:
            self._read_record(checkpoint.step)

    def _read_record(self, step: int) -> None:
        """Reads a description. One of a newer version may have fields that are unknown here."""
        try:
            content = parse_json((self.folder / str(step) / _DESCRIPTION).read_bytes())
            description = dict(content["custom_metadata"])
            written = description.pop("checksum", None)
            unknown = description.keys() - set(Record._fields)
            if written != _checksum_of_json(description) and not (unknown and written is None):
                raise ValueError("it has changed since it was written")
            if unknown:
                self._newer.add(step)
            self._records[step] = Record(**{name: description[name] for name in Record._fields})
        except (OSError, MemoryError, ValueError, KeyError, TypeError) as error:
            if is_out_of_reach(error):
                raise self._out_of_reach(step, root_cause(error)) from error
            self._damaged[step] = f"in its description: {root_cause(error)}"

    def __enter__(self):
        return self

    def __exit__(self, error_type, *_):
        with self._writing() if error_type is None else suppress(Exception):
            self._checkpointer.close()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Returns which checkpoints to keep; called by Orbax."""
        kept = {c.step for c in checkpoints[-2:]} | self._damaged.keys()
        kept |= {self.best.step} if self.best else set()
        rated = [r for r in self._records.values() if r.top1 is not None]
        kept |= {r.step for r in rated if r.epoch % self._keep_every == 0}
        return [c.step in kept for c in checkpoints]

    @property
    def latest(self) -> Record | None:
        """The record of the highest step."""
        return max(self._records.values(), key=lambda r: r.step, default=None)

    @property
    def best(self) -> Record | None:
        """The record of the highest top-1; the earlier one of two equals."""
        rated = [r for r in self._records.values() if r.top1 is not None]
        return max(rated, key=lambda r: (r.top1, -r.step), default=None)

    def find(self, step: int | None) -> Record:
        """Returns the record of a step; None: the best, or the latest if none is evaluated yet.

        Damaged checkpoints, any of which may have been the best, are logged.

        Raises:
            InputError: there is none, or it is damaged or of a newer version.
        """
        for damaged, problem in self._damaged.items():
            if step == damaged or (step is None and damaged in self._newer):
                raise self._unusable(damaged, problem)
            if step is None:
                log_line(f"the checkpoint of step {damaged} is damaged ({problem}) and ignored")
        record = self._records.get(step) if step is not None else self.best or self.latest
        if record is not None:
            return record
        if step is not None and self._records:
            there = ", ".join(map(str, sorted(self._records)))
            raise InputError(f"no checkpoint of step {step} in {self.folder}; there are {there}")
        raise InputError(
            f"the run in {self.folder.parent} has no checkpoint yet; one follows each epoch"
        )

    def save(
        self,
        state: TrainState,
        *,
        epoch: int,
        top1: float | None,
        num_classes: int,
        config: dict[str, Any],
    ) -> None:
        """Starts writing a state and its `Record`; raises an InputError as `wait` does."""
        self.wait()  # Orbax ignores a save during another one
        # The next step overwrites the state's buffers while this one is still being written.
        parts = _parts(jax.tree.map(jnp.copy, state))
        checksums = {name: _checksum(part) for name, part in parts.items()}
        step = int(state.step)
        record = Record(step, epoch, top1, checksums, num_classes, config)
        again, self._records[step] = step in self._records, record
        description = record._asdict()
        description["checksum"] = _checksum_of_json(description)
        with self._writing():
            self._checkpointer.save_checkpointables_async(
                step, parts, overwrite=again, custom_metadata=description
            )

    def wait(self) -> None:
        """Waits until all is on disk; raises an InputError if it could not be written."""
        with self._writing():
            self._checkpointer.wait()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            on_disk = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
            before = f"that of step {max(on_disk)} is intact" if on_disk else "there is no other"
            raise self._error(
                max(self._records, default=0),
                f"could not be written ({root_cause(error)}); {before}; make room there and give "
                "the same command to continue",
            ) from error

    def _error(self, step: int, problem: str) -> InputError:
        return InputError(f"the checkpoint of step {step} in {self.folder} {problem}")

    def _out_of_reach(self, step: int, reason: str) -> InputError:
        advice = "nothing was changed there; give the same command again once it can be read"
        return self._error(step, f"cannot be read now ({reason}): {advice}")

    def restore_latest(self, like: TrainState) -> tuple[TrainState, Record] | None:
        """Returns the latest state that can be read, on the devices of `like`, and its record.

        Damaged checkpoints are renamed to `STEP.damaged`, and logged; if all are, nothing is
        changed. Returns None if there is no checkpoint yet.

        Raises:
            InputError: there are checkpoints, and all are damaged, now or at an earlier start; or
                one is of another model or of a newer version, or cannot be read now.
        """
        self.wait()
        abstract = _abstract(_parts(like))
        problems: dict[int, str] = {}
        for step in reversed([c.step for c in self._checkpointer.checkpoints]):
            self._check_fit(step, abstract)
            parts, problem = self._load(step, abstract)
            if parts is not None:
                self._set_aside(problems)
                return TrainState(**parts["model"], **parts["optimizer"]), self._records[step]
            if step in self._newer:
                raise self._unusable(step, problem)
            problems[step] = problem
        damaged = [f"step {step}: {problem}" for step, problem in problems.items()]
        damaged += sorted(path.name for path in self.folder.glob("*.damaged*"))
        if damaged:
            raise InputError(
                f"every checkpoint in {self.folder} is damaged ({'; '.join(damaged)}); nothing was "
                "changed there. Give another --workdir, or remove the folder to begin again"
            )
        return None

    def _check_fit(self, step: int, abstract: dict[str, Any]) -> None:
        """Checks that a checkpoint has the shapes of the model: else it is of another one."""
        try:
            stored: Any = self._checkpointer.checkpointables_metadata(step).metadata
            there = _shapes(stored["model"])
        except Exception:  # damaged or unreadable, which loading reports
            return
        here = _shapes(abstract["model"])
        odd = [name for name in here | there if here.get(name) != there.get(name)]
        if there and odd:
            first = f"{odd[0]}: {there.get(odd[0], 'none')} there, {here.get(odd[0], 'none')} here"
            raise self._error(
                step,
                f"is of another model or for other classes ({len(odd)} arrays differ; {first}); "
                "give the model and the data of that run, or another folder",
            )

    def _unusable(self, step: int, problem: str) -> InputError:
        if step not in self._newer:
            return self._error(step, f"is damaged: {problem}")
        return self._error(
            step,
            "was written by a newer version of aa_flax and cannot be read by this one "
            f"({problem}); update it, or give another --workdir",
        )

    def _load(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """Returns the parts of a checkpoint, checked; or None, and the damage."""
        parts, problem, in_reach = None, self._damaged.get(step, ""), True
        if (record := self._records.get(step)) is not None:
            parts, problem, in_reach = self._load_quietly(step, abstract)
            if parts is not None and any(
                _checksum(part) != record.checksums.get(name) for name, part in parts.items()
            ):
                parts, problem = None, "its content has changed since it was written"
        if jax.process_count() > 1:  # all processes go back, or give up, together
            here = np.array([parts is not None, in_reach])
            whole, in_reach = multihost_utils.process_allgather(here).all(0)
            parts = parts if whole else None
        if not in_reach:
            raise self._out_of_reach(step, problem or "on another host")
        return parts, problem

    def _load_quietly(self, step: int, abstract: Any) -> tuple[Any, str, bool]:
        """Returns parts, not checked yet, or the problem; and False if they cannot be read now."""
        with warnings.catch_warnings():  # of coroutines that Orbax never awaits
            warnings.simplefilter("ignore", RuntimeWarning)
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
            try:
                try:
                    return self._checkpointer.load_checkpointables(step, abstract), "", True
                except Exception as error:  # of many types, from Orbax, tensorstore and json
                    problem, in_reach = root_cause(error), not is_out_of_reach(error)
                    time.sleep(0.5)  # until pending reads have ended
                gc.collect()  # the error, which refers to the coroutines, is gone
            finally:
                sys.unraisablehook = hook
        return None, problem, in_reach

    def _set_aside(self, problems: dict[int, str]) -> None:
        """Renames damaged checkpoints, by step, to names that are not in use."""
        if not problems:
            return
        for step, problem in problems.items():
            damaged = f"the checkpoint of step {step} is damaged ({problem})"
            log_line(f"{damaged}; going back to the one before")
        self._checkpointer.close()
        for step in problems if is_main_process() else ():
            names = (f"{step}.damaged{'' if n == 1 else f'.{n}'}" for n in count(1))
            free = next(name for name in names if not (self.folder / name).exists())
            (self.folder / str(step)).rename(self.folder / free)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._open()

    def restore_model(self, step: int, model: Classifier) -> None:
        """Copies parameters and statistics of a checkpoint into the model."""
        _, params, batch_stats, random_state = split_model(model)
        like = TrainState(jnp.zeros(()), params, batch_stats, random_state, opt_state=None)
        abstract = _abstract({"model": _parts(like)["model"]})
        self._check_fit(step, abstract)
        parts, problem = self._load(step, abstract)
        if parts is None:
            raise self._unusable(step, problem)
        update_model(model, like._replace(**parts["model"]))


def _parts(state: TrainState) -> dict[str, Any]:
    """Returns the content of a checkpoint, in two parts that can be read separately."""
    fields = state._asdict()
    optimizer = {name: fields.pop(name) for name in ("step", "opt_state")}
    return {"model": fields, "optimizer": optimizer}


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of parameters and batch statistics in a checkpoint, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(
        {name: model[name] for name in ("params", "batch_stats")}
    )
    named = ((jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves)
    return {name.removesuffix("/value"): tuple(x.shape) for name, x in named}


def _is_not_of_orbax(record: LogRecord) -> bool:
    """Filters out Orbax's log: a traceback, or several, of each error that it also raises."""
    return "orbax" not in record.pathname


def _abstract(parts: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), parts
    )


def _checksum(part: Any) -> int:
    """Returns the CRC-32 over the bytes of all arrays, in the order of the tree."""
    total = 0
    for leaf in jax.tree.leaves(part):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        total = zlib.crc32(np.ascontiguousarray(leaf.addressable_data(0)).data, total)
    return total


def _checksum_of_json(content: Any) -> int:
    """Returns the CRC-32 of JSON content, which writing and reading does not change."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
