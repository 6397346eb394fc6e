"""Lists that take long to make, kept as arrays in the user's cache folder."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from aa_flax.files import cache_folder, replacing

_DAY = 86_400 * 10**9  # in ns
_TICK = 2 * 10**9  # the coarsest clock of a file system, in ns


def read_arrays(kind: str, key: bytes) -> dict[str, np.ndarray]:
    """What `write_arrays` kept under this kind and key; empty if nothing, or it is damaged."""
    try:
        with _file(kind, key).open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except Exception:  # a damaged file leads NumPy and zipfile into errors of many types
        return {}


def write_arrays(kind: str, key: bytes, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps arrays in one step; where that is not possible they are not kept."""
    named: dict = dict(arrays)
    with (
        suppress(OSError, RuntimeError),  # RuntimeError: there is no home folder
        replacing(_file(kind, key)) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez(file, **named)


def dates_tell(modified: np.ndarray) -> bool:
    """Whether a later change would show in these dates of change, in ns since 1970.

    Mounted buckets date their folders 1970, or all alike. And what changed just now may change
    again within one tick of its clock.
    """
    alike = len(modified) > 1 and bool((modified == modified[0]).all())
    return not alike and modified.min() > _DAY and modified.max() < time.time_ns() - _TICK


def pack(names: Iterable[str]) -> np.ndarray:
    """Names, without zero bytes, as one array."""
    return np.frombuffer(os.fsencode("\0".join(names)), np.uint8)


def unpack(packed: np.ndarray) -> list[str]:
    """The names that `pack` was given, of which there was at least one."""
    return os.fsdecode(packed.tobytes()).split("\0")


def _file(kind: str, key: bytes) -> Path:
    return cache_folder() / f"{kind}_{hashlib.sha256(key).hexdigest()[:16]}.npz"
