"""What each primitive of JAX becomes: one function a primitive, of the values it reads.

They get the graph, the shape of the result, the primitive's parameters and the values, and return
the result.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from aa_flax.export.graph import CHANNELS_FIRST, Graph
from aa_flax.export.values import (
    Affine,
    Repeated,
    Shape,
    Tensor,
    Value,
    View,
    Windows,
    axis_of,
    compact,
    refuse,
    scaled,
    stored,
    viewed,
    written,
)

Params = Mapping[str, Any]
Rule = Callable[..., Value]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of these primitives."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _input(value: Value, graph: Graph) -> str | np.ndarray:
    """What a node reads: an array by name, or a constant."""
    return stored(value) if isinstance(value, np.ndarray) else written(value, graph).name


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
    return _as_stored(Tensor(name, shape), left, sorted(left), graph)


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
    return np.float64(small).reshape(small.shape[-1:] if small.size > 1 else ())


def _elementwise(operator: str, graph: Graph, shape: Shape, *values: Value) -> Value:
    return Tensor(graph.add(operator, *(_input(value, graph) for value in values)), shape)


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
        graph.add("Einsum", *(_input(x, graph) for x in (a, b)), equation=equation), shape
    )


def _letters_as_stored(letters: list[str]) -> str:
    order = CHANNELS_FIRST if len(letters) == 4 else range(len(letters))
    return "".join(letters[axis] for axis in order)


# Shapes


@rule("pad")
def _pad(graph: Graph, shape: Shape, params: Params, x: Value, filling: Value) -> Value:
    x, config = written(x, graph), params["padding_config"]
    if any(interior for _, _, interior in config):
        raise refuse("padding between pixels")
    rank = len(config)
    axes = [axis for axis in range(rank) if config[axis][:2] != (0, 0)]
    pads = [config[axis][side] for side in (0, 1) for axis in axes]
    where = np.array([axis_of(rank, axis) for axis in axes], np.int64)
    name = graph.add("Pad", x.name, np.array(pads, np.int64), _input(filling, graph), where)
    return Tensor(name, shape)


@rule("slice")
def _slice(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    steps = params["strides"] or (1,) * len(shape)
    limits = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return _looked_up(x, [slice(*limit) for limit in limits], graph)


@rule("rev")
def _reverse(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    reversed_axes = params["dimensions"]
    steps = [-1 if axis in reversed_axes else 1 for axis in range(len(shape))]
    return _looked_up(x, [slice(None, None, step) for step in steps], graph)


def _looked_up(x: Value, slices: list[slice], graph: Graph) -> View:
    view = viewed(x, graph)
    return View(view.base, tuple(view.read(axis)[part] for axis, part in enumerate(slices)))


@rule("concatenate")
def _concatenate(graph: Graph, shape: Shape, params: Params, *values: Value) -> Value:
    axis = params["dimension"]
    values = tuple(value for value in values if value.shape[axis])
    if len(values) == 1:
        return values[0]
    if (view := _joined_views(values, axis)) is not None:
        return view
    inputs = [_input(value, graph) for value in values]
    return Tensor(graph.add("Concat", *inputs, axis=axis_of(len(shape), axis)), shape)


def _joined_views(values: tuple[Value, ...], axis: int) -> View | None:
    """Parts of one array side by side, as padding puts them, are a view of it, too."""
    if not all(isinstance(value, View | Tensor) for value in values):
        return None
    views = [v if isinstance(v, View) else View(v, (None,) * len(v.shape)) for v in values]
    first, rank = views[0], len(views[0].shape)
    if not 0 < axis < rank - 1 or any(v.base != first.base for v in views):
        return None
    for other in (i for i in range(rank) if i != axis):
        if not all(np.array_equal(first.read(other), v.read(other)) for v in views[1:]):
            return None
    positions = [*first.positions]
    positions[axis] = np.concatenate([v.read(axis) for v in views])
    return View(first.base, tuple(positions))


@rule("transpose")
def _transpose(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    x, order = written(x, graph), CHANNELS_FIRST if len(shape) == 4 else range(len(shape))
    wanted = [params["permutation"][axis] for axis in order]
    return _as_stored(Tensor(x.name, shape), list(order), wanted, graph)


def _as_stored(x: Tensor, found: list[int], wanted: list[int], graph: Graph) -> Tensor:
    """The array with its axes in another order, told by what they are."""
    if found == wanted:
        return x
    order = [found.index(axis) for axis in wanted]
    return Tensor(graph.add("Transpose", x.name, perm=order), x.shape)


@rule("broadcast_in_dim")
def _repeat(graph: Graph, shape: Shape, params: Params, x: Value) -> Value:
    """New axes of one entry, or one new axis, along which each entry is repeated."""
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
        x = Tensor(graph.add("Transpose", x.name, perm=[0, 2, 3, 1]), x.shape)
    if len(shape) == 2 and shape[0] == x.shape[0]:
        return Tensor(graph.add("Flatten", x.name, axis=1), shape)
    whole = shape[0] == x.shape[0]  # the batch, of any number
    x = Tensor(graph.add("Reshape", x.name, np.array([-whole or shape[0], *shape[1:]])), shape)
    if len(shape) == 4:
        x = Tensor(graph.add("Transpose", x.name, perm=[*CHANNELS_FIRST]), shape)
    return x


def _windows(shape: Shape, x: Value, graph: Graph) -> Windows | None:
    """A map that is cut into adjoining windows; what a slice has dropped before, pools drop."""
    if (len(x.shape), len(shape)) != (4, 6):
        return None
    window = (shape[2], shape[4])
    if (shape[1] * shape[2], shape[3] * shape[4]) != tuple(x.shape[1:3]):
        return None
    if isinstance(x, View) and _drops_less(x, window):
        return Windows(x.base, window, shape)
    return Windows(written(x, graph), window, shape)


def _drops_less(view: View, window: tuple[int, int]) -> bool:
    """Whether a view leaves out nothing but a part of a window at each far edge."""
    for axis, length in enumerate((1, *window, 1)):
        index = view.read(axis)
        dropped = view.base.shape[axis] - len(index)
        if not 0 <= dropped < length or not np.array_equal(index, np.arange(len(index))):
            return False
    return True
