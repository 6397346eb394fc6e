"""Checkpoints of a run, by Orbax: the two latest, the best by top-1, and every tenth epoch's."""

import gc
import sys
import time
import warnings
from collections.abc import Sequence
from itertools import chain, count
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
from aa_flax.files import parse_json
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import is_main_process, log_line
from aa_flax.training.integrity import checksum, checksum_of_json, first_line, is_out_of_reach
from aa_flax.training.state import TrainState, split_model, update_model

# Orbax writes it. Its reader would take a file that cannot be opened for one without content.
_DESCRIPTION = "_CHECKPOINT_METADATA"


class Record(NamedTuple):
    """Description of a checkpoint, stored in it with a checksum of its own.

    Attributes:
        step: updates made, and so the position in the data.
        epoch: epochs completed.
        top1: accuracy on the validation set in percent; None: the epoch was not evaluated (yet).
        checksums: CRC-32 of each part of the state.
        num_classes: of the model. config: of the run.
    """

    step: int
    epoch: int
    top1: float | None
    checksums: dict[str, int]
    num_classes: int
    config: dict[str, Any]


class Checkpoints:
    """A folder of checkpoints, each named by its step.

    Use as a context manager: leaving it waits until the last one is written. Two latest are kept,
    so that there is one to go back to if the last turns out to be damaged. Every process of a run
    makes the same calls; one writes.

    Args:
        folder: made if absent.
        keep_every: epochs between checkpoints that are kept for good.
        of_run: the run that writes to the folder opens it: what a killed run left half-written is
            removed. Readers leave it alone, it may be in the making.
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
        """Reads a description. A newer version may have more fields than are known here."""
        try:
            content = parse_json((self.folder / str(step) / _DESCRIPTION).read_bytes())
            description = dict(content["custom_metadata"])
            written = description.pop("checksum", None)
            unknown = description.keys() - set(Record._fields)
            if written != checksum_of_json(description) and not (unknown and written is None):
                raise ValueError("it has changed since it was written")
            if unknown:
                self._newer.add(step)
            self._records[step] = Record(**{name: description[name] for name in Record._fields})
        except (OSError, MemoryError, ValueError, KeyError, TypeError) as error:
            if is_out_of_reach(error):
                raise self._read_error(step, first_line(error)) from error
            self._damaged[step] = f"in its description: {first_line(error)}"

    def __enter__(self):
        return self

    def __exit__(self, error_type, *_):
        try:
            self._checkpointer.close()
        except Exception as error:
            if error_type is None:
                raise self._write_error(error) from error

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Orbax asks here which checkpoints to keep."""
        kept = {c.step for c in checkpoints[-2:]} | self._damaged.keys()
        if (best := self.best) is not None:
            kept.add(best.step)
        for record in self._records.values():
            if record.top1 is not None and record.epoch % self._keep_every == 0:
                kept.add(record.step)
        return [c.step in kept for c in checkpoints]

    @property
    def latest(self) -> Record | None:
        return max(self._records.values(), key=lambda r: r.step, default=None)

    @property
    def best(self) -> Record | None:
        """The record of the highest top-1; the earlier one of two equals."""
        rated = [r for r in self._records.values() if r.top1 is not None]
        return max(rated, key=lambda r: (r.top1, -r.step), default=None)

    def find(self, step: int | None) -> Record:
        """The checkpoint of a step; None: the best, or the latest where none is evaluated yet.

        Damaged checkpoints, any of which may have been the best, are reported.

        Raises:
            InputError: there is none, or it is damaged or of a newer version.
        """
        for damaged, problem in self._damaged.items():
            if step in (damaged, None):
                self._check_version(damaged, problem)
            if step == damaged:
                raise self._damage_error(damaged, problem)
            if step is None:
                log_line(f"the checkpoint of step {damaged} is damaged ({problem}) and left out")
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
        """Starts writing the state, with what its `Record` says.

        Raises:
            InputError: this checkpoint, or the one before, could not be written.
        """
        step = int(state.step)
        self.wait()  # a save asked for during another one would be left out
        # The next step overwrites the state's buffers while this one is still being written.
        parts = _parts(jax.tree.map(jnp.copy, state))
        checksums = {name: checksum(part) for name, part in parts.items()}
        record = Record(step, epoch, top1, checksums, num_classes, config)
        description = record._asdict()
        again = step in self._records
        self._records[step] = record
        try:
            self._checkpointer.save_checkpointables_async(
                step,
                parts,
                overwrite=again,
                custom_metadata=description | {"checksum": checksum_of_json(description)},
            )
        except Exception as error:
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Returns once what was saved is on disk.

        Raises:
            InputError: it could not be written.
        """
        try:
            self._checkpointer.wait()
        except Exception as error:
            raise self._write_error(error) from error

    def _write_error(self, error: Exception) -> InputError:
        on_disk = sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())
        before = f"that of step {on_disk[-1]} is intact" if on_disk else "there is none before it"
        return InputError(
            f"the checkpoint of step {max(self._records, default=0)} could not be written to "
            f"{self.folder} ({first_line(error)}); {before}; make room there and give the same "
            "command to continue"
        )

    def _read_error(self, step: int, reason: str) -> InputError:
        return InputError(
            f"the checkpoint of step {step} in {self.folder} cannot be read now ({reason}) and is "
            "left as it is; give the same command again once it can"
        )

    def _damage_error(self, step: int, problem: str) -> InputError:
        return InputError(f"the checkpoint of step {step} in {self.folder} is damaged: {problem}")

    def restore_latest(self, like: TrainState) -> tuple[TrainState, Record] | None:
        """The latest state that can be read, placed as the arrays of `like` are.

        Damaged checkpoints are set aside, as `STEP.damaged`, and named on the standard output;
        where all are, nothing is touched.

        Returns:
            None where there is no checkpoint yet.

        Raises:
            InputError: there are checkpoints, and all are damaged, or were set aside before; or one
                is whole, and of another net or of a newer version; or one cannot be read now.
        """
        self.wait()
        abstract = jax.tree.map(_abstract, _parts(like))
        problems: dict[int, str] = {}
        for step in reversed([c.step for c in self._checkpointer.checkpoints]):
            self._check_fit(step, abstract)
            parts, problem = self._load(step, abstract)
            if parts is not None:
                record = self._records[step]
                self._set_aside(problems)
                return TrainState(**parts["model"], **parts["optimizer"]), record
            self._check_version(step, problem)
            problems[step] = problem
        damaged = [f"step {step}: {problem}" for step, problem in problems.items()]
        damaged += sorted(path.name for path in self.folder.glob("*.damaged*"))
        if damaged:
            raise InputError(
                f"every checkpoint in {self.folder} is damaged ({'; '.join(damaged)}); nothing was "
                "changed there. Give another --workdir, or remove the folder to begin anew"
            )
        return None

    def _check_fit(self, step: int, abstract: dict[str, Any]) -> None:
        """That a checkpoint's arrays have the shapes of the model's: else it is of another net."""
        try:
            stored: Any = self._checkpointer.checkpointables_metadata(step).metadata
            there = _shapes(stored["model"])
        except Exception:  # damaged or unreadable, as loading will tell
            return
        here = _shapes(abstract["model"])
        odd = [name for name in here | there if here.get(name) != there.get(name)]
        if there and odd:
            first = f"{odd[0]}: {there.get(odd[0], 'none')} there, {here.get(odd[0], 'none')} here"
            raise InputError(
                f"the checkpoint of step {step} in {self.folder} is of another net or for other "
                f"classes ({len(odd)} arrays differ; {first}); give the model and the data of that "
                "run, or another folder"
            )

    def _check_version(self, step: int, problem: str) -> None:
        if step in self._newer:
            raise InputError(
                f"the checkpoint of step {step} in {self.folder} was written by a newer version of "
                f"aa_flax and cannot be read by this one ({problem}); update it, or give another "
                "--workdir"
            )

    def _load(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """Parts of a checkpoint, checked; or None, and the damage.

        Raises:
            InputError: it cannot be read now, here or on another host.
        """
        parts, problem, in_reach = None, self._damaged.get(step, ""), True
        if (record := self._records.get(step)) is not None:
            parts, problem, in_reach = self._load_quietly(step, abstract)
            if parts is not None and any(
                checksum(part) != record.checksums.get(name) for name, part in parts.items()
            ):
                parts, problem = None, "its content has changed since it was written"
        if jax.process_count() > 1:  # go back, or give up, together
            here = np.array([parts is not None, in_reach])
            whole, in_reach = multihost_utils.process_allgather(here).all(0)
            parts = parts if whole else None
        if not in_reach:
            raise self._read_error(step, problem or "on another host")
        return parts, problem

    def _load_quietly(self, step: int, abstract: Any) -> tuple[Any, str, bool]:
        """Parts, not checked yet, or what went wrong; and whether they could be read at all."""
        with warnings.catch_warnings():  # Orbax leaves coroutines and pending reads behind
            warnings.simplefilter("ignore", RuntimeWarning)
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
            try:
                return self._checkpointer.load_checkpointables(step, abstract), "", True
            except Exception as error:  # of many types, from Orbax, tensorstore and json
                problem, in_reach = first_line(error), not is_out_of_reach(error)
                time.sleep(0.5)  # until those reads have ended
            finally:
                gc.collect()
                sys.unraisablehook = hook
        return None, problem, in_reach

    def _set_aside(self, problems: dict[int, str]) -> None:
        """Renames damaged checkpoints, by step, to names that are free."""
        if not problems:
            return
        for step, problem in problems.items():
            damaged = f"the checkpoint of step {step} is damaged ({problem})"
            log_line(f"{damaged}; going back to the one before")
        self._checkpointer.close()
        for step in problems if is_main_process() else ():
            free = _free_name(self.folder / f"{step}.damaged")
            (self.folder / str(step)).rename(free)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._open()

    def restore_model(self, step: int, model: Classifier) -> None:
        """Fills the model, in place, with the weights and statistics of a checkpoint.

        Raises:
            InputError: the checkpoint is damaged, of another net, or cannot be read now.
        """
        _, params, batch_stats, random_state = split_model(model)
        like = TrainState(jnp.zeros(()), params, batch_stats, random_state, opt_state=None)
        abstract = jax.tree.map(_abstract, {"model": _parts(like)["model"]})
        self._check_fit(step, abstract)
        parts, problem = self._load(step, abstract)
        if parts is None:
            self._check_version(step, problem)
            raise self._damage_error(step, problem)
        update_model(model, like._replace(**parts["model"]))


def _parts(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds, in two parts that can be read one by one."""
    fields = state._asdict()
    optimizer = {name: fields.pop(name) for name in ("step", "opt_state")}
    return {"model": fields, "optimizer": optimizer}


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters and batch statistics in the model's part of a checkpoint, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(
        {name: model[name] for name in ("params", "batch_stats")}
    )
    named = ((jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves)
    return {name.removesuffix("/value"): tuple(x.shape) for name, x in named}


def _free_name(path: Path) -> Path:
    """The path, or where it is taken, with the first free number behind it: from `.2` on."""
    names = chain([path], (path.with_name(f"{path.name}.{n}") for n in count(2)))
    return next(name for name in names if not name.exists())


def _is_not_of_orbax(record: LogRecord) -> bool:
    """Orbax logs a traceback, or several, of each error that it also raises."""
    return "orbax" not in record.pathname


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
