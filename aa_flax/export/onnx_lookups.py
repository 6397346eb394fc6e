"""Look-ups by indices in ONNX."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from aa_flax.export.onnx_graph import Graph, Unsupported
from aa_flax.export.onnx_layout import read_slices, reshape
from aa_flax.export.onnx_pointwise import pointwise
from aa_flax.export.onnx_values import Shape, Spec, Tensor, Value, rule
from aa_flax.export.onnx_writing import as_stored, plain, transposed, viewed, written

Params = Mapping[str, Any]


@rule("gather")
def _gather(graph: Graph, out: Spec, params: Params, x: Value, indices: Value) -> Value:
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if numbers.operand_batching_dims:
        raise Unsupported("each example has its own indices")
    axes, mode = numbers.start_index_map, GatherScatterMode.from_any(params["mode"])
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    if any(sizes[axis] != x.shape[axis] for axis in kept):
        raise Unsupported("it reads parts of several axes")
    if isinstance(indices, np.ndarray):
        index = np.clip(indices, 0, [x.shape[axis] - sizes[axis] for axis in axes])
        if mode == GatherScatterMode.FILL_OR_DROP and not np.array_equal(index, indices):
            raise Unsupported("some indices are outside of the array")
        indices = index
        if index.size == len(axes):
            return _read_one(graph, out, params, x, index.reshape(-1))
    elif mode == GatherScatterMode.CLIP:
        last = np.array([x.shape[axis] - 1 for axis in axes], np.int32)
        spec = Spec(indices.shape, np.dtype(np.int32))
        indices = pointwise(graph, spec, "Max", indices, np.zeros((), np.int32))
        indices = pointwise(graph, spec, "Min", indices, np.broadcast_to(last, indices.shape))
    elif mode != GatherScatterMode.PROMISE_IN_BOUNDS:
        raise Unsupported("its indices are not constants, which jnp.take(..., mode='clip') permits")
    if any(sizes[axis] != 1 for axis in axes) or {*numbers.collapsed_slice_dims} != {*axes}:
        raise Unsupported("it reads windows at several positions")
    if isinstance(indices, np.ndarray):
        if (read := _read_grid(graph, out, params, x, indices)) is not None:
            return read
        indices = indices.astype(np.int64)
    source = as_stored(written(x, graph), (*axes, *kept), graph)
    index = plain(indices, graph).name
    index = index if isinstance(index, np.ndarray) else graph.add("Cast", index, to=7)  # INT64
    order = (*_batch_axes(out.shape, params), *numbers.offset_dims)
    return Tensor(graph.add("GatherND", source.name, index), out.shape, out.dtype, order)


def _batch_axes(shape: Shape, params: Params) -> list[int]:
    """Returns the axes of the result that are those of the indices."""
    return [i for i in range(len(shape)) if i not in params["dimension_numbers"].offset_dims]


def _read_one(graph: Graph, out: Spec, params: Params, x: Value, start: np.ndarray) -> Value:
    slices, sizes = [slice(None)] * len(x.shape), params["slice_sizes"]
    for axis, begin in zip(params["dimension_numbers"].start_index_map, start, strict=True):
        slices[axis] = slice(int(begin), int(begin) + sizes[axis])
    return reshape(graph, out, read_slices(x, slices, graph))


def _read_grid(
    graph: Graph, out: Spec, params: Params, x: Value, index: np.ndarray
) -> Value | None:
    """Reads whole rows and columns, as resizes do, or returns None for other positions."""
    numbers, rank = params["dimension_numbers"], index.ndim - 1
    view, axis_of = viewed(x, graph), {}  # axes of the array, by axes of the indices
    for k, axis in enumerate(numbers.start_index_map):
        column = index[..., k]
        varying = [i for i in range(rank) if np.any(column != column.take([0], i))]
        if len(varying) > 1 or any(i in axis_of for i in varying):
            return None
        axis_of |= dict.fromkeys(varying, axis)
        row = column[tuple(slice(None) if i in varying else 0 for i in range(rank))]
        view = view.with_positions(axis, view.read(axis)[np.atleast_1d(row)])
    if any(size != 1 and i not in axis_of for i, size in enumerate(index.shape[:-1])):
        return None
    kept = [axis for axis in range(len(x.shape)) if axis not in numbers.start_index_map]
    read = dict(zip(numbers.offset_dims, kept, strict=True))
    batch = _batch_axes(out.shape, params)
    read |= {batch[i]: axis for i, axis in axis_of.items()}
    order = [read[i] for i in sorted(read)]
    order += [axis for axis in range(len(x.shape)) if axis not in order]  # read at one position
    return reshape(graph, out, transposed(view, order, graph))
