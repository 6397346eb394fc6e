"""Devices and processes, memory on CPU, the cache of compiled programs, log lines and progress."""

import ctypes
import os
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxlib import version as jaxlib_version
from tqdm import tqdm

from aa_flax.errors import InputError, first_line
from aa_flax.files import cache_folder

# Parameters of glibc's mallopt (3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
_ONEDNN = "xla_cpu_experimental_onednn_custom_call"
# YNNPACK, another library in XLA, would take convolutions first; products and sums stay with it.
_ONEDNN_FLAGS = f"--{_ONEDNN}=true --{_FUSIONS}=-individual_convolution"
_WRONG_FUSIONS = ("0.10.2", "0.11.0")
_WRONG_BFLOAT16 = "0.12.0"
_CPUINFO = Path("/proc/cpuinfo")
_LONG = 0.5  # seconds of a compilation after which much memory may be free
# Errors of the operating system are not damage: the file may be readable later.
_UNREADABLE = r"Error reading persistent compilation cache entry for '(.+?)': (?!.*\[Errno )"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with one axis, `data`, over the devices (default: all of every host)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is on every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies arrays to every device of the mesh; each process passes the same ones."""

    def put(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # device_put copies no keys to other hosts
            data, kind = jax.random.key_data(x), jax.random.key_impl(x)
            return jax.random.wrap_key_data(put(data), impl=kind)
        return jax.device_put(x, replicated(mesh))

    return jax.tree.map(put, tree)


def put_batch(batch, mesh: Mesh):
    """Moves a host's part of a batch to its devices, as a part of one global array."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def is_main_process() -> bool:
    """Checks if this process prints and writes for all processes of a run."""
    return jax.process_index() == 0


def start_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run, one or more per host, by `jax.distributed`.

    Without arguments the peers are those of the cluster's manager (SLURM, Open MPI, Kubernetes,
    Cloud TPU); elsewhere `coordinator` is `host:port` of the first process, reachable from all.

    Raises:
        InputError: no cluster was found, or the processes do not find each other.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"the processes of the run did not find each other: {first_line(error)} "
            "Under SLURM, Open MPI or Kubernetes --distributed is enough; elsewhere give each "
            "process --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def progress_bar(total: int | None, title: str, unit: str = "img", **options: Any) -> tqdm:
    """Returns tqdm's bar, with options of tqdm; it is drawn on a terminal only, not in logs."""
    disable = None if is_main_process() else True  # None: off unless on a terminal
    return tqdm(total=total, desc=title, unit=unit, leave=False, disable=disable, **options)


def log_line(line: str) -> None:
    """Prints a line, in the main process only."""
    if is_main_process():
        print(line, flush=True)


def tune_cpu() -> bool:
    """Makes the programs of this process faster on CPU; the commands of this package call it.

    *Memory is kept.* A compiled program allocates its intermediate arrays at each call. glibc, the
    C library of most Linux systems, maps large arrays from the system and unmaps them at once, so
    every page is cleared and mapped again at every call: a sixth of ResNet-18's time. After this
    function, freed memory stays with the process, which so keeps its peak memory, and programs run
    in the thread that calls them (`jax_cpu_enable_async_dispatch=False`), since glibc keeps memory
    per thread. Memory that a long compilation has freed is returned to the system. PyTorch gains by
    the same if it is started with `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1`.

    *oneDNN computes convolutions* where that is faster: with jax 0.12 and a processor with AVX-512
    and bfloat16 instructions. Models in bfloat16 and ResNeXt-50 gain most. Options that ask XLA for
    it are added to the environment's `XLA_FLAGS`, unless you have set them. JAX's compilation cache
    cannot store such programs: where it is in use, XLA computes convolutions. The commands use it,
    except with `config.dtype=bfloat16`.

    Meant for programs on CPU that call the model from one thread; other devices are not affected.

    Returns:
        True if memory is kept; False without glibc.

    Raises:
        InputError: JAX has computed already; its CPU device cannot be changed any more.

    Examples:
        At the start of a program, before any computation with JAX:

        >>> import aa_flax
        >>> keeps_memory = aa_flax.tune_cpu()
    """
    if _has_devices():
        raise InputError(
            "tune_cpu() has no effect after JAX has computed; call it first, before arrays and "
            "models are made"
        )
    if jax.config.values["jax_compilation_cache_dir"] is None:
        _use_onednn()
    return platform.libc_ver()[0] == "glibc" and _keep()


@cache
def _keep() -> bool:
    libc = ctypes.CDLL(None)
    if libc.mallopt(_MMAP_MAX, 0) != 1 or libc.mallopt(_TRIM_THRESHOLD, -1) != 1:
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)

    def trim_after_compilation(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and duration_secs > _LONG:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim_after_compilation)
    return True


def _use_onednn() -> None:
    """Has XLA give convolutions to oneDNN, a library inside jaxlib, where that was measured.

    XLA reads the flags at the first computation, and ends the process at one it does not know.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if has_onednn() and _ONEDNN not in flags and _FUSIONS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_ONEDNN_FLAGS}".strip()


def has_onednn() -> bool:
    """Checks if XLA can give convolutions to oneDNN, with a gain that was measured."""
    return jaxlib_version.__version__.startswith("0.12.") and _has_bfloat16()


def uses_onednn() -> bool:
    """Checks if XLA gives convolutions on CPU to oneDNN, after `tune_cpu`."""
    return _ONEDNN_FLAGS in os.environ.get("XLA_FLAGS", "")


def _has_bfloat16() -> bool:
    """Checks if the CPU multiplies vectors of bfloat16."""
    with suppress(OSError):
        return re.search(r"\bavx512_bf16\b", _CPUINFO.read_text()) is not None
    return False


def _has_devices() -> bool:
    """Checks if JAX has made its devices, by an option that it then refuses to change."""
    number = jax.config.values["jax_num_cpu_devices"]
    try:
        jax.config.update("jax_num_cpu_devices", number + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", number)
    return False


def avoid_wrong_fusions(dtype: str = "float32") -> None:
    """Disables fusions of XLA:CPU in versions where they compute wrong values.

    A product and a sum fused by YNNPACK read wrong rows of large arrays in jaxlib 0.10.2, the last
    for Python 3.11 (jax#39103), and crash in 0.11.0 as well (jax#39257). In bfloat16, 0.12.0 fuses
    a residual block with the mean over its positions and returns NaN; where `tune_cpu` has set the
    option before, oneDNN computes the convolutions, and nothing is fused with them. Acts before the
    first computation, and leaves the option alone where the user has set it in `XLA_FLAGS`.
    """
    flags, version = os.environ.get("XLA_FLAGS", ""), jaxlib_version.__version__
    in_half = dtype == "bfloat16" and version.startswith(_WRONG_BFLOAT16)
    if _FUSIONS not in flags and (version in _WRONG_FUSIONS or in_half):
        os.environ["XLA_FLAGS"] = f"{flags} --{_FUSIONS}={'-reduce' if in_half else ''}"


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the cache folder, unless the user has set JAX's own option."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder() / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        _remove_unreadable_programs(folder)
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _remove_unreadable_programs(folder: Path) -> None:
    """Removes compiled programs that JAX cannot read; it would warn of them at every start.

    A kill or a full disk cuts a file that JAX writes in place, and JAX overwrites none. Its warning
    has the name of the program, not of the file, so all programs of that name are removed.
    """
    others, reported = warnings.showwarning, []

    def show(message, *args, **kwargs) -> None:
        entry = re.match(_UNREADABLE, str(message))
        if entry is None:
            others(message, *args, **kwargs)
            return
        for path in folder.glob(f"{escape(entry[1])}-*"):
            path.unlink(missing_ok=True)
        if not reported:
            print(f"removed unreadable programs from {folder}; compiling again", file=sys.stderr)
            reported.append(True)

    warnings.showwarning = show


def _processor() -> str:
    """Returns a name for this kind of CPU, since JAX's own cache keys do not distinguish them.

    A program for one CPU may use instructions that another lacks, and a home may be shared.
    """
    with suppress(OSError):
        lines = _CPUINFO.read_text().splitlines()
        features = {line for line in lines if re.match("model name|flags|Features|CPU part", line)}
        return sha256("".join(sorted(features)).encode()).hexdigest()[:16]
    return platform.machine() or "unknown"
