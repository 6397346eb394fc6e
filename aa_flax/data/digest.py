"""What a run depends on of its data, as one short text."""

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np


def digest(*parts: str | Iterable[str] | np.ndarray) -> str:
    """A hash (SHA-256, 32 hex digits) of texts, lists of texts and arrays of integers.

    It is the same on every machine, and for any width of the integers.
    """
    total = hashlib.sha256()
    for part in parts:
        encoded = _encode(part)
        total.update(len(encoded).to_bytes(8, "little"))
        total.update(encoded)
    return total.hexdigest()[:32]


def file_digest(path: Path) -> str:
    """A hash (SHA-256) of a file's bytes, which are read again only when the file has changed."""
    status = path.stat()
    return _digest_of_bytes(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2**16)
def _digest_of_bytes(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encode(part: str | Iterable[str] | np.ndarray) -> bytes:
    if isinstance(part, np.ndarray):
        return part.tobytes() if part.dtype == np.uint8 else part.astype("<i8").tobytes()
    return os.fsencode(part if isinstance(part, str) else "\0".join(part))
