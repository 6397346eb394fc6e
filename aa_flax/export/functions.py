"""Any function as a file of ONNX or StableHLO, compared with the function before it is kept."""

import inspect
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.errors import InconclusiveDimensionOperation

from aa_flax.errors import InputError, first_line
from aa_flax.export import onnx_file
from aa_flax.export.onnx_program import converted
from aa_flax.export.onnx_values import Open, Spec, Tensor, sizes
from aa_flax.export.stablehlo import PLATFORMS
from aa_flax.ops import definitions

_Specs = dict[str, Any]  # of shapes and types, open sizes marked


class Function(NamedTuple):
    """A function for export, and examples of its arguments, arrays or their shapes."""

    f: Callable[..., Any]
    arguments: tuple[Any, ...]

    def inputs(self) -> _Specs:
        """Returns shapes and types of its arrays by name: the parameter, and the path in it."""
        paths, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(_spec, self.arguments))
        parameters, named = _parameters(self.f, len(self.arguments)), {}
        for (number, *path), spec in paths:
            name = ".".join(filter(None, (parameters[number.idx], _path(path))))
            named[_unused(name, named)] = spec
        batches = {spec.shape[:1] for spec in named.values()}
        if len(batches) != 1 or () in batches:
            shapes = ", ".join(f"{name} {spec.shape}" for name, spec in named.items())
            raise InputError(
                "every array of example_inputs needs the same number of examples as its first "
                f"axis, got {shapes or 'no array'}; bind parameters to the function: "
                "lambda images: f(params, images)"
            )
        return {
            name: Spec((Open(x.shape[0], 1), *x.shape[1:]), x.dtype) for name, x in named.items()
        }

    def given(self, leaves: Iterable[Any]) -> tuple[Any, ...]:
        """Returns its arguments with other arrays in them."""
        return jax.tree.unflatten(jax.tree.structure(self.arguments), leaves)

    def examples(self, repeats: int) -> list[np.ndarray]:
        """Returns its arrays, repeated, and random ones where only shapes were given."""
        return [np.concatenate([_array(x)] * repeats) for x in jax.tree.leaves(self.arguments)]

    def metadata(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        """Returns facts about it, from types and shapes of its arrays."""
        return {
            "producer": "aa_flax",
            "function": getattr(self.f, "__name__", type(self.f).__name__),
            "inputs": _facts(inputs),
            "outputs": _facts(outputs),
        }


def write_stablehlo(function: Function, path: Path) -> dict[str, Any]:
    """Writes a function for batches of any size; returns its metadata."""
    inputs, (batch,) = function.inputs(), jax_export.symbolic_shape("batch")
    given = [jax.ShapeDtypeStruct((batch, *s.shape[1:]), s.dtype) for s in inputs.values()]
    run = jax.jit(lambda *a: function.f(*a))
    try:
        with definitions():
            exported = jax_export.export(run, platforms=PLATFORMS)(*function.given(given))
    except InconclusiveDimensionOperation as error:
        raise InputError(
            f"the function cannot be exported for any number of examples: {first_line(error)}"
        ) from error
    path.write_bytes(exported.serialize())
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return function.metadata(inputs, _outputs(outputs, inputs))


def write_onnx(function: Function, path: Path) -> dict[str, Any]:
    """Writes a function for batches of any size; returns its metadata."""
    inputs, results = function.inputs(), {}

    def trace(count: int) -> Any:
        given = [jax.ShapeDtypeStruct((count, *s.shape[1:]), s.dtype) for s in inputs.values()]
        run = jax.make_jaxpr(lambda *a: function.f(*a), return_shape=True)
        with definitions():
            program, outputs = run(*function.given(given))
        results.update(_outputs(outputs, inputs))
        return program

    def tensors(count: int) -> list[Tensor]:
        shapes = [(Open(count, 1), *spec.shape[1:]) for spec in inputs.values()]
        pairs = zip(inputs.items(), shapes, strict=True)
        return [Tensor(name, shape, spec.dtype) for (name, spec), shape in pairs]

    graph, outputs = converted(trace, tensors)
    named = dict(zip(results, outputs, strict=True))
    metadata = function.metadata(inputs, named)
    given = {name: (spec.dtype, sizes(spec.shape)) for name, spec in inputs.items()}
    onnx_file.save(graph, given, named, path, metadata)
    return metadata


def difference(function: Function, path: Path, suffix: str) -> float | None:
    """Returns the largest difference of outputs, over the largest value of each, or None.

    Without a runtime the file cannot be compared.
    """
    if suffix == ".onnx" and find_spec(onnx_file.RUNTIME) is None:
        return None
    run = (_onnx_runner if suffix == ".onnx" else _stablehlo_runner)(function, path)
    expected = jax.jit(lambda *leaves: jax.tree.leaves(function.f(*function.given(leaves))))
    found = 0.0
    with jax.default_matmul_precision("highest"):
        for repeats in (1, 2):
            leaves = function.examples(repeats)
            for pair in zip(run(leaves), expected(*leaves), strict=True):
                a, b = (np.asarray(x, np.float64) for x in pair)
                largest = max(np.abs(b).max(initial=0), np.finfo(np.float32).tiny)
                found = max(found, float(np.abs(a - b).max(initial=0) / largest))
    return found


def _onnx_runner(function: Function, path: Path) -> Callable[[list[np.ndarray]], list[Any]]:
    session, names = onnx_file.session_of(path), function.inputs()
    return lambda leaves: session.run(None, dict(zip(names, leaves, strict=True)))


def _stablehlo_runner(function: Function, path: Path) -> Callable[[list[np.ndarray]], list[Any]]:
    program = jax_export.deserialize(bytearray(path.read_bytes()))
    return lambda leaves: jax.tree.leaves(program.call(*function.given(leaves)))


def _spec(x: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise InputError(
            f"example_inputs takes arrays, or jax.ShapeDtypeStructs of them, got a "
            f"{type(x).__name__}; bind other arguments to the function"
        )
    return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))


def _array(x: Any) -> np.ndarray:
    """Returns an input, or a random one where only its shape was given."""
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if not isinstance(x, jax.ShapeDtypeStruct):
        return np.asarray(x, dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.zeros(x.shape, dtype)
    return np.random.default_rng(0).standard_normal(x.shape).astype(dtype)


def _parameters(f: Callable[..., Any], count: int) -> list[str]:
    """Returns the names of a function's first parameters, or numbers where they have none."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # of a compiled function
        parameters = []
    names = [p.name for p in parameters if p.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return [names[i] if i < len(names) else f"input_{i}" for i in range(count)]


def _outputs(outputs: Any, inputs: _Specs) -> _Specs:
    """Returns the outputs by their paths, a single one as `output`."""
    named: dict[str, Any] = {}
    for path, spec in jax.tree_util.tree_flatten_with_path(outputs)[0]:
        name = _path(path) or "output"
        name = f"output.{name}" if name[0].isdigit() or name in inputs else name
        named[_unused(name, (*inputs, *named))] = spec
    return named


def _path(path: Any) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def _unused(name: str, names: Iterable[str]) -> str:
    while name in names:
        name += "_"
    return name


def _facts(named: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"shape": sizes(spec.shape), "type": np.dtype(spec.dtype).name}
        for name, spec in named.items()
    }
