"""Checksums of what is stored, and errors of reading it: damage, or a file out of reach for now."""

import errno
import json
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A file that is missing, or a name that none can have, is damage. Any other answer of the operating
# system (permission, descriptors, memory, the device) says nothing about the content.
_OF_DAMAGE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP),
}
# Tensorstore raises a ValueError with the answer in its text.
_STATUS = re.compile(r"(PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED):")
_CODE = re.compile(r"os_error_code='(\d+)'")


def checksum(part: Any) -> int:
    """CRC-32 over the bytes of all arrays, in the order of the tree."""
    total = 0
    for leaf in jax.tree.leaves(part):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        total = zlib.crc32(np.ascontiguousarray(leaf.addressable_data(0)).data, total)
    return total


def checksum_of_json(content: Any) -> int:
    """CRC-32 of what JSON can hold, the same after writing and reading it."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def is_out_of_reach(error: BaseException) -> bool:
    """Whether a file could not be read just now, so that nothing is known of its content."""
    error = _cause(error)
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_DAMAGE
    codes = {int(code) for code in _CODE.findall(str(error))}
    return isinstance(error, MemoryError) or bool(_STATUS.match(str(error)) or codes - _OF_DAMAGE)


def first_line(error: BaseException) -> str:
    """The cause of an error, briefly."""
    error = _cause(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _cause(error: BaseException) -> BaseException:
    """The error at the root: Orbax wraps errors in others, and quotes much."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error
