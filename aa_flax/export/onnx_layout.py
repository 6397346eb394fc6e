"""Padding, slices, look-ups, concatenation, transposition and reshapes in ONNX."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aa_flax.export.onnx_graph import Graph, Unsupported
from aa_flax.export.onnx_values import (
    Affine,
    Expanded,
    Open,
    Reshaped,
    Shape,
    Spec,
    Tensor,
    Value,
    View,
    rule,
)
from aa_flax.export.onnx_writing import as_stored, reshaped, transposed, viewed, written
from aa_flax.transform.values import regrouped

Params = Mapping[str, Any]


@rule("pad")
def _pad(graph: Graph, out: Spec, params: Params, x: Value, filling: Value) -> Value:
    config = params["padding_config"]
    if any(interior for _, _, interior in config):
        raise Unsupported("it pads between pixels")
    x = written(x, graph)
    pads = [config[axis][side] for side in (0, 1) for axis in x.stored]
    name = graph.add("Pad", x.name, np.array(pads, np.int64), written(filling, graph).name)
    return Tensor(name, out.shape, out.dtype, x.stored)


# Views


@rule("slice")
def _slice(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    steps = params["strides"] or (1,) * len(out.shape)
    limits = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return read_slices(x, [slice(*limit) for limit in limits], graph)


@rule("dynamic_slice")
def _slice_at(graph: Graph, out: Spec, params: Params, x: Value, *starts: Value) -> Value | None:
    if not all(isinstance(start, np.ndarray) for start in starts):
        raise Unsupported("where it begins is not a constant")
    rows = zip(starts, params["slice_sizes"], x.shape, strict=True)
    begins = [int(np.clip(np.asarray(start), 0, n - size)) for start, size, n in rows]
    pairs = zip(begins, params["slice_sizes"], strict=True)
    return read_slices(x, [slice(begin, begin + size) for begin, size in pairs], graph)


@rule("split")
def _split(graph: Graph, out: tuple[Spec, ...], params: Params, x: Value) -> list[Value]:
    axis, begin, parts = params["axis"], 0, []
    for size in params["sizes"]:
        slices = [slice(None)] * len(x.shape)
        slices[axis] = slice(begin, begin + size)
        parts.append(read_slices(x, slices, graph))
        begin += size
    return parts


@rule("rev")
def _reverse(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    steps = [-1 if axis in params["dimensions"] else 1 for axis in range(len(out.shape))]
    return read_slices(x, [slice(None, None, step) for step in steps], graph)


@rule("tile")
def _tile(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    view = viewed(x, graph)
    for axis, times in enumerate(params["reps"]):
        if times != 1:
            view = view.with_positions(axis, np.tile(view.read(axis), times))
    return view


def read_slices(x: Value, slices: list[slice], graph: Graph) -> View:
    view, positions = viewed(x, graph), []
    for axis, part in enumerate(slices):
        is_whole = part.indices(view.shape[axis]) == (0, view.shape[axis], 1)
        positions.append(view.positions[axis] if is_whole else view.read(axis)[part])
    return View(view.base, tuple(positions))


@rule("concatenate")
def _concatenate(graph: Graph, out: Spec, params: Params, *values: Value) -> Value:
    axis = params["dimension"]
    values = tuple(value for value in values if value.shape[axis])
    if len(values) == 1:
        return values[0]
    if (view := _joined_views(values, axis)) is not None:
        return view
    tensors = [written(value, graph) for value in values]
    order = next((x.stored for x in tensors if isinstance(x.name, str)), tensors[0].stored)
    names = [as_stored(x, order, graph).name for x in tensors]
    name = graph.add("Concat", *names, axis=order.index(axis))
    return Tensor(name, out.shape, out.dtype, order)


def _joined_views(values: tuple[Value, ...], axis: int) -> View | None:
    """Returns parts of one array, concatenated as padding does, as a view of it; else None."""
    views = [
        x if isinstance(x, View) else View(x, (None,) * len(x.shape))
        for x in values
        if isinstance(x, Tensor | View)
    ]
    if len(views) < len(values) or isinstance(values[0].shape[axis], Open):
        return None
    first, others = views[0], [i for i in range(len(views[0].shape)) if i != axis]
    if any(v.base.name is not first.base.name or v.base.stored != first.base.stored for v in views):
        return None
    if all(v.positions[axis] is None for v in views):  # copies of an array
        return None
    if any(not np.array_equal(first.read(i), v.read(i)) for v in views[1:] for i in others):
        return None
    return first.with_positions(axis, np.concatenate([v.read(axis) for v in views]))


# Axes


@rule("transpose")
def _transpose(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    return transposed(x, params["permutation"], graph)


@rule("broadcast_in_dim")
def _repeat(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    at = tuple(params["broadcast_dimensions"])
    if isinstance(x, Expanded):
        return Expanded(x.source, tuple(at[axis] for axis in x.at), out.shape)
    if tuple(x.shape) == out.shape:
        return x
    return Expanded(x if isinstance(x, Affine | View) else written(x, graph), at, out.shape)


@rule("reshape", "squeeze")
def _reshape(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    if "new_sizes" in params and params["dimensions"] is not None:
        x = transposed(x, params["dimensions"], graph)
    return reshape(graph, out, x)


def reshape(graph: Graph, out: Spec, x: Value) -> Value:
    """Reshapes a value, without a node where only axes of size 1 appear or go."""
    if isinstance(x, Reshaped):
        x = x.source
    if out.shape == tuple(x.shape):
        return x
    if (len(x.shape), len(out.shape)) == (4, 6):  # perhaps the windows of a pool, even of one
        return Reshaped(x, out.shape)
    if isinstance(x, Expanded) and x.small == x.shape:
        order = sorted(range(len(x.at)), key=x.at.__getitem__)
        return reshape(graph, out, transposed(x.source, order, graph))
    long = [[axis for axis, n in enumerate(shape) if n != 1] for shape in (x.shape, out.shape)]
    if [x.shape[axis] for axis in long[0]] == [out.shape[axis] for axis in long[1]]:
        return Expanded(_squeezed(x, long[0], graph), tuple(long[1]), out.shape)
    if isinstance(x, Expanded) and (view := _repeated(x, out.shape, graph)) is not None:
        return view
    if len(out.shape) > len(x.shape):
        return Reshaped(x, out.shape)
    return reshaped(x, out.shape, graph)


def _squeezed(x: Value, kept: list[int], graph: Graph) -> Any:
    """Returns an array without its axes of size 1."""
    if isinstance(x, Affine):
        base = _squeezed(x.base, kept, graph)
        if x.axis in kept:
            return Affine(base, x.scale, x.shift, kept.index(x.axis))
        return Affine(base, x.scale.reshape(()), x.shift.reshape(()), None)
    x = written(x, graph)
    if len(kept) == len(x.shape):
        return x
    order = tuple(kept.index(axis) for axis in x.stored if axis in kept)
    shape = tuple(x.shape[axis] for axis in kept)
    gone = [i for i, axis in enumerate(x.stored) if axis not in kept]
    if isinstance(x.name, np.ndarray):
        return Tensor(x.name.squeeze(tuple(gone)), shape, x.dtype, order)
    name = graph.add("Squeeze", x.name, np.array(gone, np.int64))
    return Tensor(name, shape, x.dtype, order)


def _repeated(x: Expanded, shape: Shape, graph: Graph) -> View | None:
    """Returns an array whose entries are repeated along its axes as a view of it, or None."""
    groups = regrouped(x.shape, shape)
    if groups is None or any(len(right) != 1 for _, right in groups):
        return None
    small, kept, positions = x.small, [], []
    for left, _ in groups:
        long = [axis for axis in left if small[axis] != 1]
        if len(long) > 1:
            return None
        sizes = [x.shape[axis] for axis in left]
        if any(isinstance(n, Open) for n in sizes) and len(sizes) > 1:
            return None
        is_whole = len(sizes) == 1 and small[left[0]] == sizes[0]
        index = np.arange(max(small[axis] for axis in left))
        index = index.reshape([small[axis] for axis in left])
        positions.append(None if is_whole else np.broadcast_to(index, sizes).reshape(-1))
        kept.append(long[0] if long else left[0])
    at = {axis: i for i, axis in enumerate(x.at)}
    if any(axis not in at for axis in kept) or len(kept) != len(x.at):
        return None
    view = transposed(viewed(x.source, graph), [at[axis] for axis in kept], graph)
    assert isinstance(view, View)
    for axis, index in enumerate(positions):
        view = view if index is None else view.with_positions(axis, view.read(axis)[index])
    return view
