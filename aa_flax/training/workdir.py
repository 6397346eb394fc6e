"""The folder of a run: one run a folder, and what it was begun with."""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from aa_flax.errors import InputError
from aa_flax.files import local_path, replacing
from aa_flax.runtime import is_main_process, log_line

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


def check_writable(workdir: Path) -> None:
    """That the folder is there or can be made, and can be written; nothing is made yet.

    Raises:
        InputError: it cannot.
    """
    workdir = local_path(workdir, "--workdir")
    there = next(
        path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists()
    )
    if not there.is_dir():
        raise InputError(f"--workdir {workdir}: {there} is a file, not a folder; give another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--workdir {workdir}: {there} cannot be written to; give another")
    if (workdir / "checkpoints").is_file():
        raise InputError(f"{workdir / 'checkpoints'} is to be a folder; give another --workdir")
    for path in (workdir / name for name in _FILES):
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a regular file, as it must be; give another --workdir")


def check_nothing_lost(workdir: Path) -> None:
    """That a folder without checkpoints holds no weights, which a run from the start would replace.

    Raises:
        InputError: it does.
    """
    weights = workdir / "weights.safetensors"
    if weights.exists():
        raise InputError(
            f"{workdir} holds the weights of a run whose checkpoints are gone, so it cannot be "
            f"continued; give another --workdir (with --config.init_from={weights} it starts from "
            f"them), or remove {weights.name} to begin anew here"
        )


def claim_workdir(workdir: Path, *, config: dict[str, Any], data: dict[str, Any]) -> None:
    """Records what the run is: `config.json`, `data.json`, and `versions.json`, of Python, the
    packages and the devices of the latest start."""
    if is_main_process():
        write_json(workdir / "config.json", config)
        write_json(workdir / "data.json", data)
        write_json(workdir / "versions.json", versions())


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is something to continue, be it damaged."""
    folders = (workdir / "checkpoints").glob("*")
    return any(path.name.partition(".damaged")[0].isdigit() for path in folders)


def write_json(path: Path, content: Any) -> None:
    """Writes all of the file or nothing: a reader never sees a part.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path), replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an error of writing a file, such as a full disk, into one line that names it.

    Raises:
        InputError: the file could not be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} could not be written ({error.strerror or error}); make room there and give "
            "the same command to continue"
        ) from error


def versions() -> dict[str, Any]:
    """Versions of the packages, and the devices, that a run's result may depend on."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the folder, and keeps a second process from training in it.

    A killed process leaves no lock.

    Raises:
        InputError: another run has it, or it cannot be made or written.
    """
    if not is_main_process():
        yield
        return
    path = workdir / "lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # In a folder that others write to, a link could lead to any file of this user.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except (OSError, ValueError) as error:
        if path.is_symlink():
            raise InputError(f"{path} is a link, which no run writes through; remove it") from error
        raise InputError(f"--workdir {workdir} cannot be written: {error}; give another") from error
    try:
        _take_lock(descriptor, workdir)
        with writing(path):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        os.close(descriptor)  # which gives the lock back


def _take_lock(descriptor: int, workdir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some file systems say the latter
        other = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown process"
        raise InputError(
            f"a run is in progress in {workdir} ({other}); stop it first, or give another --workdir"
        ) from None
    except OSError as error:
        log_line(
            f"{workdir} is on a file system without locks ({error.strerror}): nothing keeps a "
            "second run out of it, so start one alone"
        )
