"""Data parallelism: batches are split over every device, everything else is on each of them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from aa_flax.errors import InputError


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
