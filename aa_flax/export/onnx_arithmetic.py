"""Sums, products, maxima and minima in ONNX, which with constants are affine maps and bounds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aa_flax.export.onnx_graph import Graph
from aa_flax.export.onnx_pointwise import constant_of, pointwise
from aa_flax.export.onnx_values import Spec, Value, rule
from aa_flax.export.onnx_writing import scaled

Params = Mapping[str, Any]


@rule("add", "add_any")
def _add(graph: Graph, out: Spec, params: Params, a: Value, b: Value) -> Value:
    a, b = _constant_last(a, b)
    if (number := _along_axis(b, a)) is not None:
        return scaled(a, 1.0, *number, graph=graph)
    return pointwise(graph, out, "Add", a, b)


@rule("sub")
def _subtract(graph: Graph, out: Spec, params: Params, a: Value, b: Value) -> Value:
    if (number := _along_axis(b, a)) is not None:
        return scaled(a, 1.0, -number[0], number[1], graph=graph)
    if (number := _along_axis(a, b)) is not None:
        return scaled(b, -1.0, *number, graph=graph)
    return pointwise(graph, out, "Sub", a, b)


@rule("mul")
def _multiply(graph: Graph, out: Spec, params: Params, a: Value, b: Value) -> Value:
    a, b = _constant_last(a, b)
    if (number := _along_axis(b, a)) is not None:
        return scaled(a, number[0], 0.0, number[1], graph=graph)
    return pointwise(graph, out, "Mul", a, b)


@rule("div")
def _divide(graph: Graph, out: Spec, params: Params, a: Value, b: Value) -> Value:
    number = _along_axis(b, a)
    if number is None or np.any(number[0] == 0):
        return pointwise(graph, out, "Div", a, b)
    return scaled(a, 1 / number[0], 0.0, number[1], graph=graph)


@rule("neg")
def _negative(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    return pointwise(graph, out, "Neg", x)


def _constant_last(a: Value, b: Value) -> tuple[Value, Value]:
    return (b, a) if constant_of(a) is not None else (a, b)


def _along_axis(constant: Value, x: Value) -> tuple[np.ndarray, int | None] | None:
    """Returns a constant as one number, or as one per entry of an axis, in float64; else None."""
    small = constant_of(constant)
    if small is None or small.dtype != np.float32 or not np.all(np.isfinite(small)):
        return None
    if isinstance(x, np.ndarray):
        return None
    if small.size and np.all(small == small.flat[0]):
        return np.asarray(small.flat[0], np.float64), None
    axes = [axis for axis, size in enumerate(small.shape) if size > 1]
    if len(axes) > 1:
        return None
    number = np.asarray(small, np.float64).reshape(-1 if axes else ())
    return number, axes[0] if axes else None


@rule("max")
def _max(graph: Graph, out: Spec, params: Params, a: Value, b: Value) -> Value:
    a, b = _constant_last(a, b)
    if out.dtype == np.float32 and (small := constant_of(b)) is not None and not np.any(small):
        return pointwise(graph, out, "Relu", a)
    return pointwise(graph, out, "Max", a, b)


@rule("min")
def _min(graph: Graph, out: Spec, params: Params, a: Value, b: Value) -> Value:
    return pointwise(graph, out, "Min", *_constant_last(a, b))


@rule("clamp")
def _clamp(graph: Graph, out: Spec, params: Params, low: Value, x: Value, high: Value) -> Value:
    bounds = [bound for bound in map(constant_of, (low, high)) if bound is not None]
    if [bound.size for bound in bounds] == [1, 1]:
        return pointwise(graph, out, "Clip", x, *(bound.reshape(()) for bound in bounds))
    return pointwise(graph, out, "Min", pointwise(graph, out, "Max", x, low), high)
