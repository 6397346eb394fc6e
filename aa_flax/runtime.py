"""Devices and processes, memory on CPU, and progress for the person who watches."""

import ctypes
import platform
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from aa_flax.errors import InputError

# Parameters of glibc's mallopt (3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LONG = 0.5  # seconds of a compilation that may leave much


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, `data`, over the given devices (default: all of every host)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays on every device of the mesh; each process gives the same ones."""

    def put(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # device_put takes none to other hosts
            data, kind = jax.random.key_data(x), jax.random.key_impl(x)
            return jax.random.wrap_key_data(put(data), impl=kind)
        return jax.device_put(x, replicated(mesh))

    return jax.tree.map(put, tree)


def put_batch(batch, mesh: Mesh):
    """Moves a host's share of a batch to its devices, as a part of one global array."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def is_main_process() -> bool:
    """Whether this process prints and writes for all of a run's."""
    return jax.process_index() == 0


def start_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run, one or more a host; `jax.distributed` does the work.

    Without arguments it finds its peers by what the cluster's manager has set (SLURM, Open MPI,
    Kubernetes, Cloud TPU).

    Args:
        coordinator: `host:port` of the first process, reachable from all.
        num_processes: of the whole run. process_id: of this one, from 0.

    Raises:
        InputError: no such cluster was found, or the arguments do not make one.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"the processes of the run did not find each other: {str(error).splitlines()[0]} "
            "Under SLURM, Open MPI or Kubernetes --distributed is enough; elsewhere give each "
            "process --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def progress_bar(total: int | None, title: str, unit: str = "img", **options: Any) -> tqdm:
    """A bar with a rate and the time left, drawn on a terminal alone: nothing into a pipe or log.

    Args:
        total: how many units there are; None: not known yet.
        options: further ones of `tqdm`, e.g. `initial`, `unit_scale`.
    """
    disable = None if is_main_process() else True  # None: off unless on a terminal
    return tqdm(total=total, desc=title, unit=unit, leave=False, disable=disable, **options)


def log_line(line: str) -> None:
    """Prints a line, in the process that prints for all."""
    if is_main_process():
        print(line, flush=True)


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
