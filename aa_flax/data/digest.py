"""What a run depends on of its data, as one short text."""

import hashlib
import os
from collections.abc import Iterable

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


def _encode(part: str | Iterable[str] | np.ndarray) -> bytes:
    if isinstance(part, np.ndarray):
        return part.tobytes() if part.dtype == np.uint8 else part.astype("<i8").tobytes()
    return os.fsencode(part if isinstance(part, str) else "\0".join(part))
