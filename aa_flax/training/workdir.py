"""The folder of a run: one run a folder, its config and the versions it ran with."""

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

from aa_flax.config import Config
from aa_flax.disk import replacing
from aa_flax.errors import InputError
from aa_flax.sharding import is_main_process

# What may change between two parts of a run: none of it changes what the parameters become.
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
)
_PACKAGES = ("aa_flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def claim_workdir(config: Config, workdir: Path) -> None:
    """Records the config in a new folder, or checks that the folder's run is this one.

    Also writes `versions.json`: of Python, the packages and the devices of the latest start.

    Raises:
        InputError: the folder holds a run with another config that has saved a checkpoint; the
            message has every difference.
    """
    path = workdir / "config.json"
    given = json.loads(config.to_json())
    if path.exists() and has_checkpoint(workdir):
        _check_same_run(workdir, _saved_config(path), given)
    if is_main_process():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, given)
        write_json(workdir / "versions.json", versions())


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is something to continue."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def write_json(path: Path, content: Any) -> None:
    """Writes all of the file or nothing: a reader never sees a part."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def versions() -> dict[str, Any]:
    """Of what a run's result may depend on."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def _saved_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path} is not the config of a run ({error}); give another --workdir"
        ) from error


def _check_same_run(workdir: Path, saved: dict, given: dict) -> None:
    old, new = _flat(saved), _flat(given)
    free = _FREE
    if new.get("config.optimizer.schedule") == "step":  # a longer run begins as a shorter one
        free += ("config.num_epochs",)
    changed = [
        f"{key}: {old.get(key)} there, {new.get(key)} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(free)
    ]
    if changed:
        raise InputError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}); give another "
            "--workdir, or the same config to continue"
        )


def _flat(tree: dict, prefix: str = "config") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}"
        flat |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return flat


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps a second process from training in the same folder; a killed one leaves no lock.

    Raises:
        InputError: another run has it.
    """
    if not is_main_process():
        yield
        return
    with open(workdir / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"a run is in progress in {workdir} ({file.read().strip() or 'unknown process'}); "
                "stop it first, or give another --workdir"
            ) from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
