"""Rules from JAX's primitives to ONNX: what each becomes, one function a primitive.

A rule gets the graph, the shape of the result, the primitive's parameters and the values that it
reads, and returns the result.
"""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np

from aa_flax.export.onnx_graph import (
    CHANNELS_FIRST,
    Affine,
    Graph,
    Repeated,
    Shape,
    Tensor,
    Value,
    View,
    Windows,
    as_stored,
    axis_of,
    compact,
    refuse,
    scaled,
    stored,
    viewed,
    written,
)
from aa_flax.transform.jaxpr import Rules

Params = Mapping[str, Any]
rule = Rules()


def _order(rank: int) -> tuple[int, ...] | range:
    """Returns JAX's axes in the order of the graph."""
    return CHANNELS_FIRST if rank == 4 else range(rank)


def _apply(operator: str, graph: Graph, shape: Shape, *values: Value, **attributes: Any) -> Tensor:
    """Applies an operator to values, and to constants in JAX's order of axes."""
    inputs = [stored(v) if isinstance(v, np.ndarray) else written(v, graph).name for v in values]
    return Tensor(graph.add(operator, *inputs, **attributes), shape)


# Convolutions and pools


@rule("conv_general_dilated")
def _convolution(graph: Graph, shape: Shape, params: Params, x: Value, kernel: Value) -> Value:
    numbers = params["dimension_numbers"]
    layout = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    if layout != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)) or not isinstance(kernel, np.ndarray):
        raise refuse("convolutions other than of NHWC with a constant kernel HWIO")
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
        raise refuse("negative padding")
    return [*before, *after]


@rule("reduce_window_max")
def _max_pool(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    dilations = list(params["window_dilation"][1:3])
    return _apply("MaxPool", graph, shape, x, dilations=dilations, **_window(params))


@rule("reduce_window_sum")
def _sum_pool(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    if set(params["window_dilation"]) != {1}:
        raise refuse("dilated sums")
    mean = _apply("AveragePool", graph, shape, x, count_include_pad=1, **_window(params))
    return scaled(mean, float(prod(params["window_dimensions"])), graph=graph)


def _window(params: Params) -> dict[str, list[int]]:
    window, strides, padding = (
        params[key] for key in ("window_dimensions", "window_strides", "padding")
    )
    outer = [(window[i], strides[i], *padding[i]) for i in (0, -1)]
    if len(window) != 4 or set(outer) != {(1, 1, 0, 0)} or set(params["base_dilation"]) != {1}:
        raise refuse("pools along other axes than height and width")
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
        mean = _apply("AveragePool", graph, shape, x.base, **options)
        return scaled(mean, float(prod(x.window)), graph=graph)
    if len(x.shape) == 4 and axes == (1, 2):
        pooled = _apply("GlobalAveragePool", graph, shape, x)
        mean = _apply("Flatten", graph, shape, pooled, axis=1)
        return scaled(mean, float(prod(x.shape[1:3])), graph=graph)
    return _reduced("ReduceSum", graph, shape, written(x, graph), axes)


@rule("reduce_max")
def _maximum(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    return _reduced("ReduceMax", graph, shape, written(x, graph), tuple(params["axes"]))


def _reduced(operator: str, graph: Graph, shape: Shape, x: Tensor, axes: tuple) -> Value:
    rank = len(x.shape)
    # ReduceMax takes its axes from an input since version 18, as ReduceSum does.
    where = np.array([axis_of(rank, axis) for axis in axes], np.int64)
    result = _apply(operator, graph, shape, x, where, keepdims=0)
    left = [axis for axis in _order(rank) if axis not in axes]
    return as_stored(result, left, sorted(left), graph)


# Elementwise operations


@rule("add", "add_any")
def _add(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    a, b = _constant_last(a, b)
    if (number := _by_channel(b, a)) is not None:
        return scaled(a, shift=number, graph=graph)
    return _apply("Add", graph, shape, a, b)


@rule("sub")
def _subtract(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    if (number := _by_channel(b, a)) is not None:
        return scaled(a, shift=-number, graph=graph)
    if (number := _by_channel(a, b)) is not None:
        return scaled(b, -1.0, number, graph=graph)
    return _apply("Sub", graph, shape, a, b)


@rule("mul")
def _multiply(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    a, b = _constant_last(a, b)
    if (number := _by_channel(b, a)) is not None:
        return scaled(a, number, graph=graph)
    return _apply("Mul", graph, shape, a, b)


@rule("div")
def _divide(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    if (number := _by_channel(b, a)) is None:
        return _apply("Div", graph, shape, a, b)
    if isinstance(a, Affine):  # divided, not multiplied by the inverse: n / n is exactly 1
        return Affine(a.base, a.scale / number, a.shift / number)
    return scaled(a, 1 / number, graph=graph)


@rule("max")
def _max(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    a, b = _constant_last(a, b)
    if isinstance(b, np.ndarray) and not np.any(b):
        return _apply("Relu", graph, shape, a)
    return _apply("Max", graph, shape, a, b)


@rule("min")
def _min(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    return _apply("Min", graph, shape, *_constant_last(a, b))


def _constant_last(a: Value, b: Value) -> tuple[Value, Value]:
    return (b, a) if isinstance(a, np.ndarray) else (a, b)


def _by_channel(constant: Value, x: Value) -> np.ndarray | None:
    """Returns a constant as one number, or as one per channel, in float64; else None."""
    if not isinstance(constant, np.ndarray) or isinstance(x, np.ndarray):
        return None
    if not np.issubdtype(constant.dtype, np.floating):
        return None
    small = compact(constant)
    if prod(small.shape[:-1]) != 1 or small.shape[-1:] not in ((), (1,), (x.shape[-1],)):
        return None
    return np.asarray(small, np.float64).reshape(small.shape[-1:] if small.size > 1 else ())


def _same(operator: str, graph: Graph, shape: Shape, params: Params, *values: Value) -> Value:
    return _apply(operator, graph, shape, *values)


rule("logistic")(partial(_same, "Sigmoid"))
for _name in ("abs", "erf", "exp", "log", "neg", "pow", "sign", "sqrt", "tanh"):
    rule(_name)(partial(_same, _name.capitalize()))


@rule("square")
def _square(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    return _apply("Mul", graph, shape, x, x)


@rule("convert_element_type")
def _convert(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    kind = np.dtype(params["new_dtype"])
    if kind != np.float32:
        raise refuse(f"models that compute in {kind}, only in float32")
    if isinstance(x, Tensor) and x.dtype != np.float32:
        return _apply("Cast", graph, shape, x, to=1)  # FLOAT
    return x


# Matrix products


@rule("dot_general")
def _product(graph: Graph, shape: Shape, params: Params, a: Value, b: Value) -> Value:
    (contracted_a, contracted_b), (batch_a, batch_b) = params["dimension_numbers"]
    plain = (tuple(contracted_a), tuple(contracted_b), tuple(batch_a)) == ((1,), (0,), ())
    if plain and isinstance(b, np.ndarray) and (len(a.shape), b.ndim) == (2, 2):
        return Tensor(graph.add("Gemm", written(a, graph).name, b), shape)
    # Any other product is an Einsum, with a letter for each axis; contracted and batch axes are
    # shared by both operands.
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    axes_a, axes_b = letters[: len(a.shape)], letters[len(a.shape) :][: len(b.shape)]
    shared = [*batch_a, *contracted_a]
    for i, j in zip(shared, (*batch_b, *contracted_b), strict=True):
        axes_b[j] = axes_a[i]
    free = [x for x in axes_a + axes_b if x not in {axes_a[i] for i in shared}]
    result = [axes_a[i] for i in batch_a] + free
    terms = ["".join(axes[i] for i in _order(len(axes))) for axes in (axes_a, axes_b, result)]
    return _apply("Einsum", graph, shape, a, b, equation="{},{}->{}".format(*terms))


# Layout: padding, slices, concatenation, transposition, reshapes


@rule("pad")
def _pad(graph: Graph, shape: Shape, params: Params, x: Value, filling: Value) -> Value:
    config = params["padding_config"]
    if any(interior for _, _, interior in config):
        raise refuse("padding between pixels")
    pads = [config[axis][side] for side in (0, 1) for axis in _order(len(config))]
    return _apply("Pad", graph, shape, x, np.array(pads, np.int64), filling)


@rule("slice")
def _slice(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    steps = params["strides"] or (1,) * len(shape)
    limits = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return _read_slices(x, [slice(*limit) for limit in limits], graph)


@rule("rev")
def _reverse(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    steps = [-1 if axis in params["dimensions"] else 1 for axis in range(len(shape))]
    return _read_slices(x, [slice(None, None, step) for step in steps], graph)


def _read_slices(x: Value, slices: list[slice], graph: Graph) -> View:
    view = viewed(x, graph)
    return View(view.base, tuple(view.read(axis)[part] for axis, part in enumerate(slices)))


@rule("concatenate")
def _concatenate(graph: Graph, shape: Shape, params: Params, *values: Value) -> Value:
    axis = params["dimension"]
    values = tuple(value for value in values if value.shape[axis])
    if len(values) == 1:
        return values[0]
    if (view := _joined_views(values, axis, graph)) is not None:
        return view
    return _apply("Concat", graph, shape, *values, axis=axis_of(len(shape), axis))


def _joined_views(values: tuple[Value, ...], axis: int, graph: Graph) -> View | None:
    """Returns parts of one array, concatenated as padding does, as a view of it; else None."""
    if not all(isinstance(value, Tensor | View) for value in values):
        return None
    views = [viewed(value, graph) for value in values]
    first, rank = views[0], len(views[0].shape)
    if not 0 < axis < rank - 1 or any(v.base != first.base for v in views):
        return None
    for other in (i for i in range(rank) if i != axis):
        if not all(np.array_equal(first.read(other), v.read(other)) for v in views[1:]):
            return None
    return first.with_positions(axis, np.concatenate([v.read(axis) for v in views]))


@rule("transpose")
def _transpose(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    order = _order(len(shape))
    wanted = [params["permutation"][axis] for axis in order]
    return as_stored(Tensor(written(x, graph).name, shape), list(order), wanted, graph)


@rule("broadcast_in_dim")
def _repeat(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    """New axes of size 1, or one new axis along which each entry is repeated."""
    if prod(shape) == prod(x.shape):
        return _reshape(graph, shape, params, x)
    new = [axis for axis in range(len(shape)) if axis not in params["broadcast_dimensions"]]
    repeated = Repeated(viewed(x, graph), new[0] - 1, shape[new[0]]) if new and new[0] else None
    if repeated is None or repeated.shape != shape:
        raise refuse("arrays that are repeated along an axis")
    return repeated


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    if shape == tuple(x.shape):
        return x
    if isinstance(x, Repeated) and x.merged().shape == shape:
        return x.merged()
    if windows := _windows(shape, x, graph):
        return windows
    x = written(x, graph)
    if len(x.shape) == 4 and x.shape[1:3] != (1, 1):
        x = _apply("Transpose", graph, x.shape, x, perm=[0, 2, 3, 1])
    if len(shape) == 2 and shape[0] == x.shape[0]:
        return _apply("Flatten", graph, shape, x, axis=1)
    whole = shape[0] == x.shape[0]  # the batch, of any size
    x = _apply("Reshape", graph, shape, x, np.array([-whole or shape[0], *shape[1:]]))
    return _apply("Transpose", graph, shape, x, perm=[*CHANNELS_FIRST]) if len(shape) == 4 else x


def _windows(shape: Shape, x: Value, graph: Graph) -> Windows | None:
    """Returns a map that is cut into adjoining windows, or None for any other reshape.

    A slice before it drops the incomplete windows at the far edges, which pools of ONNX do anyway.
    """
    if (len(x.shape), len(shape)) != (4, 6):
        return None
    window = (shape[2], shape[4])
    if (shape[1] * shape[2], shape[3] * shape[4]) != tuple(x.shape[1:3]):
        return None
    base = x.base if isinstance(x, View) and _drops_less(x, window) else written(x, graph)
    return Windows(base, window, shape)


def _drops_less(view: View, window: tuple[int, int]) -> bool:
    """Checks whether a view drops nothing but an incomplete window at each far edge."""
    for axis, length in enumerate((1, *window, 1)):
        index = view.read(axis)
        dropped = view.base.shape[axis] - len(index)
        if not 0 <= dropped < length or not np.array_equal(index, np.arange(len(index))):
            return False
    return True
