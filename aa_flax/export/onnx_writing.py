"""Values of a JAX program as arrays of an ONNX graph, in the fewest operators."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from aa_flax.export.onnx_graph import AFFINE, Graph, Unsupported
from aa_flax.export.onnx_values import (
    COUNT,
    Affine,
    Expanded,
    Open,
    Reshaped,
    Shape,
    Tensor,
    Value,
    View,
)
from aa_flax.transform.values import regrouped


def scaled(
    value: Value, scale: Any = 1.0, shift: Any = 0.0, axis: int | None = None, *, graph: Graph
) -> Value:
    """Returns `value * scale + shift` along an axis, in float64 until it is written."""
    scale, shift = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
    if (source := inside(value)) is not None:
        inner = None if axis is None else _axis_inside(value, axis)
        if inner is not None or axis is None:
            return outside(value, scaled(source, scale, shift, inner, graph=graph), graph)
    if isinstance(value, Expanded) and (axis is None or value.small[axis] == scale.size):
        inner = None if axis is None else value.at.index(axis)
        source = scaled(value.source, scale, shift, inner, graph=graph)
        assert isinstance(source, Affine | View)
        return replace(value, source=source)
    if isinstance(value, Affine) and (None in (axis, value.axis) or axis == value.axis):
        both = (value.scale * scale, value.shift * scale + shift)
        if np.all(np.abs(both[0] - 1) < 1e-12):  # n / n, of the mean of n pixels
            both = (np.ones_like(both[0]), both[1])
        if all(np.abs(x).max() < np.finfo(np.float32).max for x in both):
            return Affine(value.base, *both, value.axis if axis is None else axis)
    return Affine(written(value, graph), scale, shift, axis)


def inside(value: Value) -> Value | None:
    """Returns what has the entries of a reshaped or padded value, for elementwise operations."""
    if isinstance(value, Reshaped):
        return value.source
    if isinstance(value, View) and prod(value.shape) >= prod(value.base.shape):
        return value.base
    return None


def outside(value: Value, inner: Value, graph: Graph) -> Value:
    """Returns other entries in the layout of a value for which `inside` returned some."""
    if isinstance(value, Reshaped):
        return replace(value, source=inner)
    assert isinstance(value, View)
    return View(written(inner, graph), value.positions)


def _axis_inside(value: Value, axis: int) -> int | None:
    """Returns the axis of `inside` that is an axis of a value, if it is one as a whole."""
    if isinstance(value, View):
        return axis if value.positions[axis] is None else None
    assert isinstance(value, Reshaped)
    groups = regrouped(value.source.shape, value.shape) or ()
    return next((left[0] for left, right in groups if right == [axis] and len(left) == 1), None)


def viewed(value: Value, graph: Graph) -> View:
    """Returns a value as a view, of itself if it is not one."""
    if isinstance(value, View):
        return value
    base = written(value, graph)
    return View(base, (None,) * len(base.shape))


def transposed(value: Value, permutation: Sequence[int], graph: Graph) -> Value:
    """Returns a value with its axes in another order, without a node."""
    if isinstance(value, Affine):
        axis = None if value.axis is None else permutation.index(value.axis)
        return replace(value, base=value.base.transposed(permutation), axis=axis)
    if isinstance(value, View):
        positions = tuple(value.positions[i] for i in permutation)
        return View(value.base.transposed(permutation), positions)
    if isinstance(value, Expanded):
        at = tuple(permutation.index(axis) for axis in value.at)
        return Expanded(value.source, at, tuple(value.shape[i] for i in permutation))
    return written(value, graph).transposed(permutation)


def compact(constant: np.ndarray) -> np.ndarray:
    """Returns a constant with one entry along each axis that `np.broadcast_to` has stretched."""
    axes = zip(constant.shape, constant.strides, strict=True)
    return np.asarray(constant[tuple(slice(None if s or n < 2 else 1) for n, s in axes)])


def as_stored(x: Tensor, order: Sequence[int], graph: Graph) -> Tensor:
    """Returns an array with its axes in that order in the graph."""
    order = tuple(order)
    if x.stored == order:
        return x
    permutation = [x.stored.index(axis) for axis in order]
    if isinstance(x.name, np.ndarray):
        name = np.ascontiguousarray(x.name.transpose(permutation))
    else:
        name = graph.add("Transpose", x.name, perm=permutation)
    return replace(x, name=name, order=order)


def plain(value: Value, graph: Graph) -> Tensor:
    """Returns a value as an array of the graph with the axes of JAX."""
    x = written(value, graph)
    return as_stored(x, range(len(x.shape)), graph)


def written(value: Value, graph: Graph) -> Tensor:
    """Returns a value as an array of the graph, to which it adds nodes where needed."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return Tensor(np.asarray(value), value.shape, value.dtype)
    if isinstance(value, View):
        return _written_view(value, graph)
    if isinstance(value, Reshaped):
        return reshaped(value.source, value.shape, graph)
    if isinstance(value, Expanded):
        return _written_in_full(value, graph)
    base = value.base
    if np.all(np.float32(value.scale) == 1) and np.all(np.float32(value.shift) == 0):
        return base
    axis = None if value.axis is None else base.stored.index(value.axis)
    sizes = tuple(base.shape[i] for i in base.stored)
    name = graph.add(AFFINE, base.name, value.scale, value.shift, axis=axis, shape=sizes)
    return replace(base, name=name)


def reshaped(value: Value, shape: Shape, graph: Graph) -> Tensor:
    """Writes a reshape, in which one axis may be of open size."""
    x = plain(value, graph)
    if isinstance(x.name, np.ndarray):
        return replace(x, name=x.name.reshape(shape), shape=shape)
    if len(shape) == 2 and shape[0] == x.shape[0]:
        return Tensor(graph.add("Flatten", x.name, axis=1), shape, x.dtype)
    sizes = np.array([-1 if isinstance(n, Open) else n for n in shape], np.int64)
    if np.sum(sizes < 0) > 1:
        raise Unsupported("it has several axes of open size")
    return Tensor(graph.add("Reshape", x.name, sizes), shape, x.dtype)


def aligned(value: Expanded, order: Sequence[int], graph: Graph) -> Tensor:
    """Returns what is repeated, with one entry along each axis of repetition."""
    inner = [value.at.index(axis) for axis in order if axis in value.at]
    source = as_stored(written(value.source, graph), inner, graph)
    new = [i for i, axis in enumerate(order) if axis not in value.at]
    name = source.name
    if new and isinstance(name, np.ndarray):
        name = np.expand_dims(name, new)
    elif new:
        name = graph.add("Unsqueeze", name, np.array(new, np.int64))
    return Tensor(name, value.small, source.dtype, tuple(order))


def _written_in_full(value: Expanded, graph: Graph) -> Tensor:
    small = aligned(value, range(len(value.shape)), graph)
    if small.shape == value.shape:
        return small
    name = graph.add("Expand", small.name, sizes_in_graph(value.shape, graph))
    return replace(small, name=name, shape=value.shape)


def sizes_in_graph(shape: Shape, graph: Graph) -> Any:
    """Returns a shape as an array, computed from the size of the batch where that is open."""
    opened = [i for i, n in enumerate(shape) if isinstance(n, Open)]
    if not opened:
        return np.array(shape, np.int64)
    parts: list[Any] = []
    for n in shape:
        if not isinstance(n, Open):
            parts.append(np.array([n], np.int64))
        elif n.times == 1:
            parts.append(COUNT)
        else:
            parts.append(graph.add("Mul", COUNT, np.array([n.times], np.int64)))
    return graph.add("Concat", *parts, axis=0)


def _written_view(value: View, graph: Graph) -> Tensor:
    base, name = value.base, value.base.name
    indexed = {
        base.stored.index(axis): (base.shape[axis], index)
        for axis, index in enumerate(value.positions)
        if index is not None and not np.array_equal(index, np.arange(base.shape[axis]))
    }
    if not indexed:
        return base
    if (padding := _padding(indexed)) is not None:
        mode, widths = padding
        # All axes are padded, since onnxruntime's optimizer miscompiles a Pad of some.
        rank = len(value.shape)
        pads = [widths.get(axis, (0, 0))[side] for side in (0, 1) for axis in range(rank)]
        name = graph.add("Pad", name, np.array(pads, np.int64), mode=mode)
    elif (steps := _steps(indexed)) is not None:
        axes = np.array(sorted(indexed), np.int64)
        rows = np.array([steps[axis] for axis in axes], np.int64).T
        name = graph.add("Slice", name, *rows[:2], axes, rows[2])
    else:
        for axis in sorted(indexed):
            name = graph.add("Gather", name, np.asarray(indexed[axis][1], np.int64), axis=int(axis))
    return replace(base, name=name, shape=value.shape)


_Indexed = dict[int, tuple[int, np.ndarray]]  # by axis of the graph: its size, positions read


def _padding(indexed: _Indexed) -> tuple[str, dict[int, tuple[int, int]]] | None:
    """Returns the mode and the widths of the padding that reads these positions, or None."""
    for mode in ("reflect", "edge", "wrap"):
        widths = {axis: _widths(mode, *given) for axis, given in indexed.items()}
        if all(each is not None for each in widths.values()):
            return mode, widths  # pyright: ignore[reportReturnType]
    return None


def _widths(mode: Any, size: int, index: np.ndarray) -> tuple[int, int] | None:
    more = len(index) - size
    most = size - (mode == "reflect")  # of ONNX
    for before in range(max(0, more - most), min(more, most) + 1):
        widths = (before, more - before)
        if np.array_equal(index, np.pad(np.arange(size), widths, mode=mode)):
            return widths
    return None


def _steps(indexed: _Indexed) -> dict[int, tuple[int, int, int]] | None:
    """Returns start, stop and step of the slice along each axis, or None if one is no slice."""
    steps = {}
    for axis, (_, index) in indexed.items():
        step = int(index[1] - index[0]) if len(index) > 1 else 1
        if step < 1 or np.any(np.diff(index) != step):
            return None
        steps[axis] = (int(index[0]), int(index[-1]) + 1, step)
    return steps
