"""Hashes of data, and indexes of it that are kept as arrays in the user's cache folder."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.files import cache_folder, replacing

_DAY = 86_400 * 10**9  # in ns
_TICK = 2 * 10**9  # the coarsest clock of a file system, in ns
THREADS = 16  # that index data; they wait for the file system most of the time


def read_arrays(kind: str, key: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays that `write_arrays` stored; none if the file is missing or damaged."""
    try:
        with _file(kind, key).open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except Exception:  # NumPy and zipfile raise errors of many types for a damaged file
        return {}


def write_arrays(kind: str, key: bytes, arrays: Mapping[str, np.ndarray]) -> None:
    """Stores arrays in one step; does nothing if the cache folder cannot be written."""
    with (
        suppress(OSError, RuntimeError),  # RuntimeError: there is no home folder
        replacing(_file(kind, key)) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez(file, **dict[str, Any](arrays))


def _file(kind: str, key: bytes) -> Path:
    return cache_folder() / f"{kind}_{hashlib.sha256(key).hexdigest()[:16]}.npz"


def dates_are_reliable(modified: np.ndarray) -> bool:
    """Checks that a later change would alter these modification times, in ns since 1970.

    Mounted buckets date their folders 1970, or all the same. And a file that has just changed may
    change again within the same tick of its clock.
    """
    alike = len(modified) > 1 and bool((modified == modified[0]).all())
    return not alike and modified.min() > _DAY and modified.max() < time.time_ns() - _TICK


def digest(*parts: str | Iterable[str] | np.ndarray) -> str:
    """Returns a hash (SHA-256, 32 hex digits) of texts, lists of texts and integer arrays.

    It is the same on every machine, and for any width of the integers.
    """
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            encoded = part.tobytes() if part.dtype == np.uint8 else part.astype("<i8").tobytes()
        else:
            encoded = os.fsencode(part if isinstance(part, str) else "\0".join(part))
        total.update(len(encoded).to_bytes(8, "little"))
        total.update(encoded)
    return total.hexdigest()[:32]


def file_digest(path: Path) -> str:
    """Returns a hash (SHA-256) of a file, which is read again only after it has changed."""
    status = path.stat()
    return _file_digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2**16)
def _file_digest(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
