"""The memory of a process on CPU: kept for the next pass, not given back after each."""

import ctypes
import platform
from functools import cache
from typing import Any

import jax

from aa_flax.errors import InputError

# Parameters of glibc's mallopt (3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LONG = 0.5  # seconds of a compilation that may leave much


def keep_memory() -> bool:
    """Keeps the memory that a pass on CPU has used for the next pass, which is faster by it.

    A compiled program takes the memory of its intermediate arrays anew at each call. glibc, the C
    library of most Linux systems, maps large pieces from the system and gives them back at once, so
    every page is cleared and mapped again at every call: a sixth of ResNet-18's time. Behind this
    call freed memory stays with the process, which goes on holding the most that it has held, and
    programs run in the thread that calls them (`jax_cpu_enable_async_dispatch=False`), the one
    whose memory glibc can keep. What compiling has left is given back.

    For programs on CPU whose one thread calls the net; computation elsewhere is as before. The
    commands of this package call it. PyTorch gains by the same when it is started with
    `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1` in its environment.

    Returns:
        Whether it is in force: False, and nothing is changed, without glibc.

    Raises:
        InputError: JAX has computed already, so that its CPU device exists as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    if _has_devices():
        raise InputError(
            "keep_memory() after JAX has computed changes nothing any more; call it first, before "
            "arrays and models are made"
        )
    return _keep()


@cache
def _keep() -> bool:
    libc = ctypes.CDLL(None)
    if libc.mallopt(_MMAP_MAX, 0) != 1 or libc.mallopt(_TRIM_THRESHOLD, -1) != 1:
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)

    def give_back_what_compiling_left(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and duration_secs > _LONG:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(give_back_what_compiling_left)
    return True


def _has_devices() -> bool:
    """Told by an option that JAX refuses to change once its devices exist."""
    number = jax.config.values["jax_num_cpu_devices"]
    try:
        jax.config.update("jax_num_cpu_devices", number + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", number)
    return False
