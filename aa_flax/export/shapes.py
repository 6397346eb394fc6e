"""Rules for what moves values: padding, slices, joints, transpositions and new shapes."""

from math import prod

import numpy as np

from aa_flax.export.graph import CHANNELS_FIRST, Graph
from aa_flax.export.rules import Params, input_of, rule
from aa_flax.export.values import (
    Repeated,
    Shape,
    Tensor,
    Value,
    View,
    Windows,
    as_stored,
    axis_of,
    refuse,
    viewed,
    written,
)


@rule("pad")
def _pad(graph: Graph, shape: Shape, params: Params, x: Value, filling: Value) -> Value:
    x, config = written(x, graph), params["padding_config"]
    if any(interior for _, _, interior in config):
        raise refuse("padding between pixels")
    order = CHANNELS_FIRST if len(config) == 4 else range(len(config))
    pads = [config[axis][side] for side in (0, 1) for axis in order]
    name = graph.add("Pad", x.name, np.array(pads, np.int64), input_of(filling, graph))
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
    inputs = [input_of(value, graph) for value in values]
    return Tensor(graph.add("Concat", *inputs, axis=axis_of(len(shape), axis)), shape)


def _joined_views(values: tuple[Value, ...], axis: int) -> View | None:
    """Parts of one array side by side, as padding puts them, are a view of it, too."""
    views = []
    for value in values:
        if isinstance(value, Tensor):
            value = View(value, (None,) * len(value.shape))
        if not isinstance(value, View):
            return None
        views.append(value)
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
    return as_stored(Tensor(x.name, shape), list(order), wanted, graph)


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
