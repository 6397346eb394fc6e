"""Any function as a file of StableHLO, compared with the function before it is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.errors import InconclusiveDimensionOperation

from aa_flax.errors import InputError, first_line
from aa_flax.export.stablehlo import PLATFORMS
from aa_flax.ops import definitions

_Named = dict[str, jax.ShapeDtypeStruct]


def write(f: Callable[..., Any], arguments: tuple[Any, ...], path: Path) -> dict[str, Any]:
    """Writes a function for batches of any size; returns facts about its inputs and outputs."""
    specs = jax.tree.map(_spec, arguments)
    named = _named(specs)
    batches = {spec.shape[:1] for spec in named.values()}
    if len(batches) != 1 or () in batches:
        shapes = ", ".join(f"{name} {spec.shape}" for name, spec in named.items())
        raise InputError(
            f"every array of example_inputs needs the same number of examples as its first axis, "
            f"got {shapes or 'no array'}; bind parameters to the function: "
            "lambda images: f(params, images)"
        )
    (batch,) = jax_export.symbolic_shape("batch")
    given = jax.tree.map(lambda s: jax.ShapeDtypeStruct((batch, *s.shape[1:]), s.dtype), specs)
    try:
        with definitions():
            exported = jax_export.export(jax.jit(lambda *a: f(*a)), platforms=PLATFORMS)(*given)
    except InconclusiveDimensionOperation as error:
        raise InputError(
            f"the function cannot be exported for any number of examples: {first_line(error)}"
        ) from error
    path.write_bytes(exported.serialize())
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "producer": "aa_flax",
        "function": getattr(f, "__name__", type(f).__name__),
        "inputs": _facts(named),
        "outputs": _facts(_named((outputs,))),
    }


def difference(f: Callable[..., Any], arguments: tuple[Any, ...], path: Path) -> float:
    """Returns the largest difference of the file's outputs, over the largest value of each."""
    call, found = jax_export.deserialize(bytearray(path.read_bytes())).call, 0.0
    with jax.default_matmul_precision("highest"):
        for repeats in (1, 2):
            given = jax.tree.map(lambda x: np.concatenate([_array(x)] * repeats), arguments)  # noqa: B023
            pairs = (jax.tree.leaves(run(*given)) for run in (call, jax.jit(lambda *a: f(*a))))
            for a, b in zip(*pairs, strict=True):
                a, b = (np.asarray(x, np.float64) for x in (a, b))
                largest = max(np.abs(b).max(initial=0), np.finfo(np.float32).tiny)
                found = max(found, float(np.abs(a - b).max(initial=0) / largest))
    return found


def _spec(x: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise InputError(
            f"example_inputs takes arrays, or jax.ShapeDtypeStructs of them, got a "
            f"{type(x).__name__}; bind other arguments to the function"
        )
    return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))


def _array(x: Any) -> np.ndarray:
    """Returns an input, or a random one where only its shape was given."""
    if not isinstance(x, jax.ShapeDtypeStruct):
        return np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, x.dtype)
    return np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype)


def _named(arguments: tuple[Any, ...]) -> _Named:
    leaves, _ = jax.tree_util.tree_flatten_with_path(arguments)
    return {jax.tree_util.keystr(path, simple=True, separator="."): spec for path, spec in leaves}


def _facts(named: _Named) -> dict[str, Any]:
    return {
        name: {"shape": ["batch", *spec.shape[1:]], "type": np.dtype(spec.dtype).name}
        for name, spec in named.items()
    }
