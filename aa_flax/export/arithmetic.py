"""Rules for what computes: convolutions, pools, sums, products, and one value at a time."""

from math import prod
from typing import Any

import numpy as np

from aa_flax.export.graph import CHANNELS_FIRST, Graph
from aa_flax.export.rules import Params, input_of, rule
from aa_flax.export.values import (
    Affine,
    Shape,
    Tensor,
    Value,
    Windows,
    as_stored,
    axis_of,
    compact,
    refuse,
    scaled,
    written,
)

# Convolutions and pools


@rule("conv_general_dilated")
def _convolution(graph: Graph, shape: Shape, params: Params, x: Value, kernel: Value) -> Value:
    numbers = params["dimension_numbers"]
    layout = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    if layout != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)) or not isinstance(kernel, np.ndarray):
        raise refuse("convolutions but those of NHWC by a fixed kernel HWIO")
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise refuse("transposed convolutions")
    name = graph.add(
        "Conv",
        written(x, graph).name,
        np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)),
        kernel_shape=list(kernel.shape[:2]),
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        pads=_pads(params["padding"]),
    )
    return Tensor(name, shape)


def _pads(widths: Any) -> list[int]:
    before, after = zip(*widths, strict=True)
    if min(*before, *after) < 0:
        raise refuse("padding by fewer than no pixels")
    return [*before, *after]


@rule("reduce_window_max")
def _max_pool(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    options = {**_window(params), "dilations": list(params["window_dilation"][1:3])}
    return Tensor(graph.add("MaxPool", written(x, graph).name, **options), shape)


@rule("reduce_window_sum")
def _sum_pool(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    if set(params["window_dilation"]) != {1}:
        raise refuse("dilated sums")
    name = graph.add("AveragePool", written(x, graph).name, count_include_pad=1, **_window(params))
    return scaled(Tensor(name, shape), float(prod(params["window_dimensions"])), graph=graph)


def _window(params: Params) -> dict[str, list[int]]:
    window, strides, padding = (
        params[key] for key in ("window_dimensions", "window_strides", "padding")
    )
    outer = [(window[i], strides[i], *padding[i]) for i in (0, -1)]
    if len(window) != 4 or set(outer) != {(1, 1, 0, 0)} or set(params["base_dilation"]) != {1}:
        raise refuse("pools over other axes than height and width")
    return {
        "kernel_shape": list(window[1:3]),
        "strides": list(strides[1:3]),
        "pads": _pads(padding[1:3]),
    }


# Sums


@rule("reduce_sum")
def _sum(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    axes = tuple(params["axes"])
    if isinstance(x, Windows) and axes == (2, 4):
        options = {"kernel_shape": list(x.window), "strides": list(x.window)}
        pooled = Tensor(graph.add("AveragePool", x.base.name, **options), shape)
        return scaled(pooled, float(prod(x.window)), graph=graph)
    x = written(x, graph)
    if len(x.shape) == 4 and axes == (1, 2):
        pooled = graph.add("GlobalAveragePool", x.name)
        mean = Tensor(graph.add("Flatten", pooled, axis=1), shape)
        return scaled(mean, float(prod(x.shape[1:3])), graph=graph)
    return _reduced("ReduceSum", graph, shape, x, axes)


@rule("reduce_max")
def _maximum(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    return _reduced("ReduceMax", graph, shape, written(x, graph), tuple(params["axes"]))


def _reduced(operator: str, graph: Graph, shape: Shape, x: Tensor, axes: tuple) -> Value:
    rank = len(x.shape)
    where = np.array([axis_of(rank, axis) for axis in axes], np.int64)
    # ReduceMax takes its axes from an input since version 18, as ReduceSum does.
    name = graph.add(operator, x.name, where, keepdims=0)
    order = CHANNELS_FIRST if rank == 4 else range(rank)
    left = [axis for axis in order if axis not in axes]
    return as_stored(Tensor(name, shape), left, sorted(left), graph)


# One value each


@rule("add", "add_any")
def _add(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    a, b = (b, a) if isinstance(a, np.ndarray) else (a, b)
    if (number := _by_channel(b, a)) is not None:
        return scaled(a, shift=number, graph=graph)
    return _elementwise("Add", graph, shape, a, b)


@rule("sub")
def _subtract(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    if (number := _by_channel(b, a)) is not None:
        return scaled(a, shift=-number, graph=graph)
    if (number := _by_channel(a, b)) is not None:
        return scaled(b, -1.0, number, graph=graph)
    return _elementwise("Sub", graph, shape, a, b)


@rule("mul")
def _multiply(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    a, b = (b, a) if isinstance(a, np.ndarray) else (a, b)
    if (number := _by_channel(b, a)) is not None:
        return scaled(a, number, graph=graph)
    return _elementwise("Mul", graph, shape, a, b)


@rule("div")
def _divide(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    if (number := _by_channel(b, a)) is None:
        return _elementwise("Div", graph, shape, a, b)
    if isinstance(a, Affine):  # not times the inverse: a sum over as many is the mean itself
        return Affine(a.base, a.scale / number, a.shift / number)
    return scaled(a, 1 / number, graph=graph)


@rule("max")
def _max(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    a, b = (b, a) if isinstance(a, np.ndarray) else (a, b)
    if isinstance(b, np.ndarray) and not np.any(b):
        return Tensor(graph.add("Relu", written(a, graph).name), shape)
    return _elementwise("Max", graph, shape, a, b)


@rule("min")
def _min(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    a, b = (b, a) if isinstance(a, np.ndarray) else (a, b)
    return _elementwise("Min", graph, shape, a, b)


def _by_channel(constant: Value, x: Value) -> np.ndarray | None:
    """A constant as one number, or as one for each entry of the last axis, in float64."""
    if not isinstance(constant, np.ndarray) or isinstance(x, np.ndarray):
        return None
    if not np.issubdtype(constant.dtype, np.floating):
        return None
    small = compact(constant)
    if prod(small.shape[:-1]) != 1 or small.shape[-1:] not in ((), (1,), (x.shape[-1],)):
        return None
    return np.asarray(small, np.float64).reshape(small.shape[-1:] if small.size > 1 else ())


def _elementwise(operator: str, graph: Graph, shape: Shape, *values: Value) -> Value:
    return Tensor(graph.add(operator, *(input_of(value, graph) for value in values)), shape)


_ONE_TO_ONE = {
    "abs": "Abs",
    "erf": "Erf",
    "exp": "Exp",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "pow": "Pow",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
for _name, _operator in _ONE_TO_ONE.items():

    @rule(_name)
    def _one_to_one(
        graph: Graph, shape: Shape, params: Params, *values: Value, _operator: str = _operator
    ) -> Value:
        return _elementwise(_operator, graph, shape, *values)


@rule("square")
def _square(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    return _elementwise("Mul", graph, shape, x, x)


@rule("convert_element_type")
def _convert(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    kind = np.dtype(params["new_dtype"])
    if kind != np.float32:
        raise refuse(f"nets that compute in {kind}, only for those of float32")
    if isinstance(x, Tensor) and x.dtype != np.float32:
        return Tensor(graph.add("Cast", x.name, to=1), shape)  # FLOAT
    return x


# Products


@rule("dot_general")
def _product(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    (contracted_a, contracted_b), (batch_a, batch_b) = params["dimension_numbers"]
    plain = (tuple(contracted_a), tuple(contracted_b), tuple(batch_a)) == ((1,), (0,), ())
    if plain and isinstance(b, np.ndarray) and (len(a.shape), b.ndim) == (2, 2):
        return Tensor(graph.add("Gemm", written(a, graph).name, b), shape)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    axes_a = [next(letters) for _ in a.shape]
    axes_b = [next(letters) for _ in b.shape]
    for pairs in ((batch_a, batch_b), (contracted_a, contracted_b)):
        for i, j in zip(*pairs, strict=True):
            axes_b[j] = axes_a[i]
    free_a, free_b = (
        [axes[i] for i in range(len(axes)) if i not in {*contracted, *batch}]
        for axes, contracted, batch in (
            (axes_a, contracted_a, batch_a),
            (axes_b, contracted_b, batch_b),
        )
    )
    result = [axes_a[i] for i in batch_a] + free_a + free_b
    terms = [_letters_as_stored(letters) for letters in (axes_a, axes_b, result)]
    equation = f"{terms[0]},{terms[1]}->{terms[2]}"
    return Tensor(
        graph.add("Einsum", *(input_of(x, graph) for x in (a, b)), equation=equation), shape
    )


def _letters_as_stored(letters: list[str]) -> str:
    order = CHANNELS_FIRST if len(letters) == 4 else range(len(letters))
    return "".join(letters[axis] for axis in order)
