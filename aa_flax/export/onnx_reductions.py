"""Sums, maxima and products along axes in ONNX."""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np

from aa_flax.export.onnx_graph import Graph, Unsupported
from aa_flax.export.onnx_pointwise import pointwise
from aa_flax.export.onnx_values import Reshaped, Spec, Tensor, Value, View, rule
from aa_flax.export.onnx_windows import pooled_last
from aa_flax.export.onnx_writing import as_stored, plain, scaled, written
from aa_flax.transform.sites import pooled_by_reshape

Params = Mapping[str, Any]


@rule("reduce_sum")
def _sum(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    axes = tuple(params["axes"])
    if pooled := _pool_by_reshape("AveragePool", graph, out, axes, x):
        mean, count = pooled
        return scaled(mean, float(count), graph=graph)
    x = written(x, graph)
    if len(x.shape) == 4 and {*axes} == {*x.stored[2:]} and out.dtype == np.float32:
        pooled = graph.add("GlobalAveragePool", x.name)
        first, second = x.stored[:2]
        mean = Tensor(graph.add("Flatten", pooled, axis=1), out.shape, out.dtype)
        if first > second:
            mean = Tensor(mean.name, out.shape, out.dtype, (1, 0))
        return scaled(mean, float(prod(x.shape[axis] for axis in axes)), graph=graph)
    return _reduced("ReduceSum", graph, out, params, x)


@rule("reduce_max")
def _maximum(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    if pooled := _pool_by_reshape("MaxPool", graph, out, tuple(params["axes"]), x):
        return pooled[0]
    return _reduced("ReduceMax", graph, out, params, x)


def _pool_by_reshape(
    operator: str, graph: Graph, out: Spec, axes: tuple[int, ...], x: Value
) -> tuple[Tensor, int] | None:
    """Returns a pool of a map that was cut into adjoining windows, and their size; else None."""
    if not isinstance(x, Reshaped) or len(out.shape) != 4 or out.dtype != np.float32:
        return None
    windows = pooled_by_reshape(x.source.shape, x.shape, axes)
    if windows is None or len(windows) != 2:
        return None
    source = pooled_last(_with_incomplete_windows(x.source, windows, graph), [*windows], graph)
    window = [windows[axis] for axis in source.stored[2:]]
    name = graph.add(operator, source.name, kernel_shape=window, strides=window)
    return Tensor(name, out.shape, out.dtype, source.stored), prod(window)


def _with_incomplete_windows(x: Value, windows: dict[int, int], graph: Graph) -> Tensor:
    """Returns a map before a slice that drops incomplete windows, as pools of ONNX do."""
    if not isinstance(x, View):
        return written(x, graph)
    for axis, index in enumerate(x.positions):
        dropped = x.base.shape[axis] - x.shape[axis]
        is_start = index is None or np.array_equal(index, np.arange(len(index)))
        if not is_start or not 0 <= dropped < windows.get(axis, 1):
            return written(x, graph)
    return x.base


def _reduced(operator: str, graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    x, axes = written(x, graph), tuple(params["axes"])
    # ReduceMax takes its axes from an input since version 18, as ReduceSum does.
    where = np.array(sorted(x.where(axes)), np.int64)
    left = [axis for axis in x.stored if axis not in axes]
    order = tuple(sorted(left).index(axis) for axis in left)
    return Tensor(graph.add(operator, x.name, where, keepdims=0), out.shape, out.dtype, order)


rule("reduce_min")(partial(_reduced, "ReduceMin"))
rule("reduce_prod")(partial(_reduced, "ReduceProd"))


def _of_booleans(operator: str, graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    if out.dtype != np.bool_:
        raise Unsupported("it reduces the bits of integers")
    numbers = pointwise(graph, Spec(x.shape, np.dtype(np.int32)), "Cast", x, to=6)  # INT32
    reduced = _reduced(operator, graph, Spec(out.shape, np.dtype(np.int32)), params, numbers)
    return pointwise(graph, out, "Cast", reduced, to=9)  # BOOL


rule("reduce_and")(partial(_of_booleans, "ReduceMin"))
rule("reduce_or")(partial(_of_booleans, "ReduceMax"))


def _index_of(operator: str, graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    (axis,) = params["axes"]
    x = plain(x, graph)
    name = graph.add(operator, x.name, axis=int(axis), keepdims=0)  # int64
    if out.dtype != np.int64:
        name = graph.add("Cast", name, to=6)  # INT32
    return Tensor(name, out.shape, out.dtype)


rule("argmax")(partial(_index_of, "ArgMax"))
rule("argmin")(partial(_index_of, "ArgMin"))


@rule("cumsum")
def _cumulative_sum(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    x = written(x, graph)
    (axis,) = x.where([params["axis"]])
    name = graph.add("CumSum", x.name, np.array(axis, np.int64), reverse=int(params["reverse"]))
    return Tensor(name, out.shape, out.dtype, x.stored)


# Matrix products


@rule("dot_general")
def _product(graph: Graph, out: Spec, params: Params, a: Value, b: Value) -> Value:
    (contracted_a, contracted_b), (batch_a, batch_b) = params["dimension_numbers"]
    a, b = written(a, graph), written(b, graph)
    free_a, free_b = (
        [axis for axis in range(len(x.shape)) if axis not in (*contracted, *batch)]
        for x, contracted, batch in ((a, contracted_a, batch_a), (b, contracted_b, batch_b))
    )
    is_matrix = len(contracted_a) == len(free_b) == 1 and (not batch_a or len(free_a) == 1)
    if is_matrix and free_a and a.stored == (*batch_a, *free_a, *contracted_a):
        b = as_stored(b, (*batch_b, *contracted_b, *free_b), graph)
        is_plain = len(a.shape) == 2 and not batch_a and out.dtype == np.float32
        operator = "Gemm" if is_plain else "MatMul"
        return Tensor(graph.add(operator, a.name, b.name), out.shape, out.dtype)
    # Any other product is an Einsum, with a letter for each axis; contracted and batch axes are
    # shared by both operands.
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    axes_a, axes_b = letters[: len(a.shape)], letters[len(a.shape) :][: len(b.shape)]
    for i, j in zip((*batch_a, *contracted_a), (*batch_b, *contracted_b), strict=True):
        axes_b[j] = axes_a[i]
    # The new axes are where the contracted ones were, so that channels stay first.
    inner, new = [axes_a[i] for i in contracted_a], [axes_b[i] for i in free_b]
    stored = [axes_a[i] for i in a.stored]
    at = min((stored.index(x) for x in inner), default=len(stored))
    stored = [x for x in (*stored[:at], *new, *stored[at:]) if x not in inner]
    result = [axes_a[i] for i in (*batch_a, *free_a)] + new
    terms = ["".join(x[i] for i in y.stored) for x, y in ((axes_a, a), (axes_b, b))]
    name = graph.add("Einsum", a.name, b.name, equation="{},{}->{}".format(*terms, "".join(stored)))
    return Tensor(name, out.shape, out.dtype, tuple(result.index(x) for x in stored))
