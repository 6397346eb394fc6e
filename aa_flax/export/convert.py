"""From the program of a net, as JAX traces it, to a graph of ONNX's operators.

The operators are few, since the net is fused and its operations traced as their definitions; what
only constants go into is computed here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from aa_flax.errors import InputError
from aa_flax.export import arithmetic, shapes  # noqa: F401 (they fill the table of rules)
from aa_flax.export.graph import Graph, simplified
from aa_flax.export.rules import RULES
from aa_flax.export.values import Tensor, Value, written


class Converted(NamedTuple):
    """A graph, the name of what it gives, and the shape of that in JAX's order."""

    graph: Graph
    result: str
    shape: tuple


def converted(function: Callable, images: jax.ShapeDtypeStruct, name: str) -> Converted:
    """The graph of a function of images.

    Args:
        images: `(N, H, W, C)`.
        name: of the images in the graph, where they stand channels first.

    Raises:
        InputError: an operation that ONNX has no operator for.
    """
    program = jax.make_jaxpr(function)(images)
    graph = Graph()
    given = [Tensor(name, tuple(images.shape), images.dtype)]
    (result,) = _run(program.jaxpr, program.consts, given, graph)
    last = written(result, graph)
    return Converted(simplified(graph, last.name), last.name, last.shape)


def _run(jaxpr: Any, constants: Any, arguments: Any, graph: Graph) -> list[Value]:
    values: dict[Any, Value] = {}
    values.update(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Value:
        return np.asarray(variable.val) if hasattr(variable, "val") else values[variable]

    for equation in jaxpr.eqns:
        given = [read(variable) for variable in equation.invars]
        results = _results(equation, given, graph)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _results(equation: Any, given: list[Value], graph: Graph) -> list[Value]:
    name = equation.primitive.name
    if inner := next(_inner(equation.params), None):
        return _run(inner.jaxpr, inner.consts, given, graph)
    if name in ("optimization_barrier", "name", "copy", "copy_p", "sharding_constraint"):
        return given
    shape = tuple(equation.outvars[0].aval.shape)
    if 0 in shape:  # what padding by no pixels adds
        return [np.zeros(shape, np.float32)]
    constant = all(isinstance(value, np.ndarray) for value in given)
    if constant and name == "broadcast_in_dim":
        return [_broadcast(given[0], equation.params, shape)]
    if constant:
        found = equation.primitive.bind(*given, **equation.params)
        return [np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])]
    if name not in RULES:
        raise InputError(
            f"ONNX has no operator for {name}, which this net computes (its pool, perhaps); export "
            "it as .stablehlo"
        )
    return [RULES[name](graph, shape, equation.params, *given)]


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
    """The program that an operation stands for, if it does: that of a jitted function, say."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if (program := params.get(key)) is not None:
            yield program if hasattr(program, "consts") else ClosedJaxpr(program, ())


def _broadcast(constant: Any, params: Mapping[str, Any], shape: tuple) -> np.ndarray:
    """Repeated without being copied: `compact` finds what there was."""
    sizes = [1] * len(shape)
    for axis, size in zip(params["broadcast_dimensions"], constant.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(constant.reshape(sizes), shape)
