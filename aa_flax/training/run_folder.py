"""The folder of a run: one run per folder, and every reason to refuse a resume, checked first."""

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from aa_flax import files
from aa_flax.config import Config
from aa_flax.data.sources import Source
from aa_flax.errors import InputError
from aa_flax.evaluation.engine import summary
from aa_flax.files import check_directory, local_path, parse_json, replacing
from aa_flax.runtime import is_main_process, log_line
from aa_flax.weights.checkpoints import Checkpoints, Record
from aa_flax.weights.locate import describe
from aa_flax.weights.read import read_metadata

_FILES = (
    "config.json",
    "data.json",
    "versions.json",
    "metrics.jsonl",
    "weights.safetensors",
    "results.json",
    "lock",
)
_PACKAGES = ("aa_flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Values that may change between two parts of a run: the parameters do not depend on them.
_FREE = (
    "config.name",
    "config.remat",
    "config.profile",
    "config.log.",
    "config.checkpoint.",
    "config.eval.",
    "config.data.path",
    "config.data.num_workers",
    "config.data.worker_type",
    "config.data.on_error",  # so far no image was skipped, or the run would have stopped
)
# Those on which the final results do not depend either.
_FREE_OF_RESULTS = tuple(
    key for key in _FREE if key not in ("config.eval.", "config.data.on_error")
)
_SPLITS = {"train": "training set", "val": "validation set"}

writing = partial(files.writing, advice="make room there and give the same command to continue")


class RunFolder:
    """The folder of a run: what it was begun with, its lock, its checkpoints.

    Attributes:
        path: of the folder. continues: it has checkpoints to resume from, be they damaged.
        config, data: of the run, for `config.json` and `data.json`; set by `check`.

    Args:
        path: need not exist; nothing is made or changed before `begin`.

    Raises:
        InputError: it cannot be made or written to, or something else has the name of a file.
    """

    config: dict[str, Any]
    data: dict[str, Any]

    def __init__(self, path: Path):
        self.path = local_path(path, "--workdir")
        check_directory(self.path, f"--workdir {path}")
        self._checkpoints = self.path / "checkpoints"
        if self._checkpoints.is_file():
            raise InputError(
                f"{self._checkpoints} is a file, but a directory is needed; give another --workdir"
            )
        for file in (self.path / name for name in _FILES):
            if file.exists() and not file.is_file():
                raise InputError(f"{file} is not a regular file; give another --workdir")
        names = (found.name for found in self._checkpoints.glob("*"))
        self.continues = any(name.partition(".damaged")[0].isdigit() for name in names)

    def check(
        self, config: dict[str, Any], data: dict[str, Any], *, accept: bool
    ) -> dict[str, Any] | None:
        """Checks that a run with this config and data can begin or resume here.

        Args:
            data: of `describe_data`.
            accept: resume with other images, after a line about what changed. Other classes are
                never accepted, since the logits would change their meaning.

        Returns:
            The results of the run if it is finished.

        Raises:
            InputError: the folder has a run with another config or data, or weights of a run whose
                checkpoints are gone.
        """
        self.config, self.data = config, data
        if not self.continues:
            weights = self.path / "weights.safetensors"
            if weights.exists():
                raise InputError(
                    f"{self.path} has the weights of a run whose checkpoints are gone, so it "
                    "cannot be continued; give another --workdir (with "
                    f"--config.init_from={weights} it starts from them), or remove {weights.name} "
                    "to begin again here"
                )
            return None
        with Checkpoints(self._checkpoints) as checkpoints:
            latest, best = checkpoints.latest, checkpoints.best
        if latest is not None:  # else all are damaged, as restoring one reports
            check_same_config(latest.config, config, self.path)
        check_same_data(data, config["num_epochs"], self.path, latest, accept=accept)
        results = self._finished_results(latest, best)
        if results is not None:
            log_line(summary(results))
            log_line(f"the run in {self.path} is finished; these are the results it has written")
        return results

    def _finished_results(self, latest: Record | None, best: Record | None) -> Any:
        """Returns the results of a run that has nothing left to do with this config and data."""
        if latest is None or best is None or latest.top1 is None:
            return None  # without checkpoints that can be read, or stopped before an evaluation
        if latest.epoch < self.config["num_epochs"]:
            return None
        weights, results = self.path / "weights.safetensors", self.path / "results.json"
        try:
            stored = parse_json(results.read_text())
            changed_data = self.data != parse_json((self.path / "data.json").read_text())
            top1 = read_metadata(weights)["top1"]
            late = results.stat().st_mtime_ns >= weights.stat().st_mtime_ns
            changed = _differences(stored["config"], self.config)
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: written again
            return None
        same = all(key.startswith(_FREE_OF_RESULTS) for key in changed)
        return stored if late and same and not changed_data and top1 == f"{best.top1}" else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, and keeps other processes from training in it.

        A killed process leaves no lock.

        Raises:
            InputError: another run has it, or it cannot be made or written to.
        """
        if not is_main_process():
            yield
            return
        path = self.path / "lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # In a folder that others can write to, a link could lead to any file of this user.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except (OSError, ValueError) as error:
            if path.is_symlink():
                raise InputError(f"{path} is a link, so no run writes to it; remove it") from error
            raise InputError(
                f"--workdir {self.path} cannot be written: {error}; give another"
            ) from error
        try:
            self._take_lock(descriptor)
            with writing(path):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
            yield
        finally:
            os.close(descriptor)  # which releases the lock

    def _take_lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the latter on some file systems
            other = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown process"
            raise InputError(
                f"a run is in progress in {self.path} ({other}); stop it first, or give another "
                "--workdir"
            ) from None
        except OSError as error:
            log_line(
                f"{self.path} is on a file system without locks ({error.strerror}), so a second "
                "run would not be refused; start only one"
            )

    def claim(self) -> None:
        """Writes `config.json`, `data.json`, and `versions.json`: those of the latest start."""
        if is_main_process():
            write_json(self.path / "config.json", self.config)
            write_json(self.path / "data.json", self.data)
            write_json(self.path / "versions.json", versions())


def write_json(path: Path, content: Any) -> None:
    """Writes all of a file or nothing."""
    with writing(path), replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def versions() -> dict[str, Any]:
    """Returns versions of the packages, and the devices, on which a result may depend."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def check_same_config(before: dict[str, Any], now: dict[str, Any], workdir: Path) -> None:
    """Raises an InputError unless a run was begun with this config, but for values in `_FREE`."""
    free = _FREE
    if now["optimizer"]["schedule"] == "step":  # a longer run begins like a shorter one
        free += ("config.num_epochs",)
    changed = [
        f"{key}: {_shown(old)} there, {_shown(new)} now"
        for key, (old, new) in _differences(before, now).items()
        if not key.startswith(free)
    ]
    if changed:
        raise InputError(
            f"{workdir} has a run with another config ({'; '.join(changed)}); give another "
            "--workdir, or the same config to continue"
        )


def _differences(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
    """Returns different values by dotted name; what a config lacks is at its default."""
    default = Config().to_dict()
    a, b = (
        flatten_dict({"config": default}, sep=".") | flatten_dict({"config": config}, sep=".")
        for config in (old, new)
    )
    keys = sorted(a.keys() | b.keys())
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def _shown(value: Any) -> str:
    return str(value) if value != "" else "''"


def describe_data(sources: Mapping[str, Source], steps_per_epoch: int) -> dict[str, Any]:
    """Returns what a run depends on of its data, for `data.json`."""
    described: dict[str, Any] = {"steps_per_epoch": steps_per_epoch}
    for split, source in sources.items():
        described[split] = {
            "images": len(source),
            "classes": [str(name) for name in source.class_names],
        }
        if (digest := getattr(source, "digest", None)) is not None:
            described[split]["digest"] = digest()
    return described


def check_same_data(
    data: dict[str, Any], num_epochs: int, workdir: Path, latest: Record | None, *, accept: bool
) -> None:
    """Raises an InputError unless the data is that of the run in the folder, or is accepted."""
    path = workdir / "data.json"
    if not path.exists():
        return
    try:
        before = parse_json(path.read_text())
        changed = _changed_data(before, data, workdir)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the data of a run; give another --workdir") from error
    if not changed:
        return
    if not accept:
        raise InputError(
            f"the data is not that of the run in {workdir}: {'; '.join(changed)}. Give "
            "--accept_data_change to continue nevertheless, or another --workdir"
        )
    log_line(f"the data has changed, as accepted: {'; '.join(changed)}")
    old_steps, new_steps = before["steps_per_epoch"], data["steps_per_epoch"]
    if old_steps == new_steps or latest is None:
        return
    if num_epochs * new_steps <= latest.step < num_epochs * old_steps:
        raise InputError(
            f"with {new_steps} steps an epoch step {latest.step} is after the last of "
            f"{num_epochs} epochs, so nothing is left to train; give another --workdir"
        )
    log_line(
        f"epochs are counted by steps: step {latest.step} is after {latest.step / new_steps:.3g} "
        "of them now"
    )


def _changed_data(before: dict[str, Any], now: dict[str, Any], workdir: Path) -> list[str]:
    """Returns every change of images and teacher; raises an InputError on a change of classes."""
    for split, called in _SPLITS.items():
        _check_classes(before[split]["classes"], now[split]["classes"], called, workdir)
    changes = []
    for split, called in _SPLITS.items():
        old, new = before[split], now[split]
        if old["images"] != new["images"]:
            text = f"the {called} has {new['images']} images, the run's had {old['images']}"
            if split == "train" and before["steps_per_epoch"] != now["steps_per_epoch"]:
                text += (
                    f", so an epoch has {now['steps_per_epoch']} steps instead of "
                    f"{before['steps_per_epoch']}: epochs and learning rate would shift"
                )
            changes.append(text)
        elif "digest" in old and "digest" in new and old["digest"] != new["digest"]:
            changes.append(f"the {called} has other images or labels, as many as before")
    if before.get("teacher") != now.get("teacher"):
        was, is_now = (describe(data.get("teacher", "none")) for data in (before, now))
        changes.append(f"the teacher is {is_now}, the run's was {was}")
    return changes


def _check_classes(before: list[str], now: list[str], called: str, workdir: Path) -> None:
    changes = []
    for what, names in (
        ("added", [name for name in now if name not in set(before)]),
        ("removed", [name for name in before if name not in set(now)]),
    ):
        if names:
            changes.append(f"{what} {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    if changes:
        message = f"the data has {len(now)} classes, the run {len(before)}: {'; '.join(changes)}"
    elif before != now:
        first = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        message = (
            f"the {called}'s classes have another order than the run's: logit {first} was "
            f"{before[first]}, now {now[first]}"
        )
    else:
        return
    raise InputError(
        f"{message}. Restore the classes that the run in {workdir} was begun with, or give another "
        f"--workdir (with --config.init_from={workdir} it starts from these weights)"
    )
