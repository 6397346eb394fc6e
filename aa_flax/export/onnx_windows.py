"""Convolutions and pools in ONNX, which has them channels first."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from aa_flax.export.onnx_graph import Graph, Unsupported
from aa_flax.export.onnx_values import Spec, Tensor, Value, rule
from aa_flax.export.onnx_writing import as_stored, scaled, written

Params = Mapping[str, Any]


@rule("conv_general_dilated")
def _convolution(graph: Graph, out: Spec, params: Params, x: Value, kernel: Value) -> Value:
    numbers = params["dimension_numbers"]
    x = as_stored(written(x, graph), numbers.lhs_spec, graph)
    weights = as_stored(written(kernel, graph), numbers.rhs_spec, graph)  # (O, I, ...)
    if params["batch_group_count"] != 1:
        raise Unsupported("it has groups of the batch")
    if max(params["lhs_dilation"], default=1) > 1:
        return _transposed_convolution(graph, out, params, x, weights)
    name = graph.add(
        "Conv",
        x.name,
        weights.name,
        kernel_shape=[weights.shape[axis] for axis in numbers.rhs_spec[2:]],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        pads=_pads(params["padding"]),
    )
    return Tensor(name, out.shape, out.dtype, tuple(numbers.out_spec))


def _transposed_convolution(
    graph: Graph, out: Spec, params: Params, x: Tensor, weights: Tensor
) -> Value:
    """A convolution of a map with zeros between its pixels, by which JAX transposes one."""
    groups, kernel = params["feature_group_count"], weights.name
    if not isinstance(kernel, np.ndarray) or set(params["window_strides"]) != {1}:
        raise Unsupported("a transposed convolution has stride 1 and a constant kernel here")
    outputs, inputs, *sizes = kernel.shape
    grouped = kernel.reshape(groups, outputs // groups, inputs, *sizes).swapaxes(1, 2)
    kernel = np.flip(grouped.reshape(groups * inputs, -1, *sizes), tuple(range(2, kernel.ndim)))
    reach = [(size - 1) * d for size, d in zip(sizes, params["rhs_dilation"], strict=True)]
    rows = list(zip(reach, params["padding"], strict=True))
    before, after = [r - low for r, (low, _) in rows], [r - high for r, (_, high) in rows]
    strides = list(params["lhs_dilation"])
    more = [max(-n, 0) for n in after]  # pixels that nothing reaches but the kernel's end
    if min(before) < 0 or any(n >= stride for n, stride in zip(more, strides, strict=True)):
        raise Unsupported("it pads by more than its kernel")
    name = graph.add(
        "ConvTranspose",
        x.name,
        np.ascontiguousarray(kernel),
        kernel_shape=sizes,
        strides=strides,
        dilations=list(params["rhs_dilation"]),
        group=groups,
        pads=[*before, *(max(n, 0) for n in after)],
        output_padding=more,
    )
    return Tensor(name, out.shape, out.dtype, tuple(params["dimension_numbers"].out_spec))


def _pads(widths: Any) -> list[int]:
    before, after = zip(*widths, strict=True) if widths else ((), ())
    if min(*before, *after, 0) < 0:
        raise Unsupported("it pads by a negative number")
    return [*before, *after]


@rule("reduce_window_max")
def _max_pool(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    source, options = _window(graph, params, x)
    dilations = [params["window_dilation"][axis] for axis in source.stored[2:]]
    name = graph.add("MaxPool", source.name, dilations=dilations, **options)
    return Tensor(name, out.shape, out.dtype, source.stored)


@rule("reduce_window_min")
def _min_pool(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    if out.dtype != np.float32:
        raise Unsupported("it pools other numbers than floats")
    return scaled(_max_pool(graph, out, params, scaled(x, -1.0, graph=graph)), -1.0, graph=graph)


@rule("reduce_window_sum")
def _sum_pool(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    if out.dtype != np.float32 or set(params["window_dilation"]) != {1}:
        raise Unsupported("it is dilated, or sums other numbers than floats")
    source, options = _window(graph, params, x)
    name = graph.add("AveragePool", source.name, count_include_pad=1, **options)
    mean = Tensor(name, out.shape, out.dtype, source.stored)
    return scaled(mean, float(prod(params["window_dimensions"])), graph=graph)


def _window(graph: Graph, params: Params, x: Value) -> tuple[Tensor, dict[str, list[int]]]:
    """Returns a map with the axes that are pooled last in the graph, and the pool's options."""
    rows = zip(
        params["window_dimensions"], params["window_strides"], params["padding"], strict=True
    )
    pooled = [axis for axis, row in enumerate(rows) if row != (1, 1, (0, 0))]
    if set(params["base_dilation"]) != {1}:
        raise Unsupported("it has zeros between pixels")
    source = pooled_last(written(x, graph), pooled, graph)
    window, strides, padding = (
        [params[key][axis] for axis in source.stored[2:]]
        for key in ("window_dimensions", "window_strides", "padding")
    )
    return source, {"kernel_shape": window, "strides": strides, "pads": _pads(padding)}


def pooled_last(x: Tensor, pooled: Sequence[int], graph: Graph) -> Tensor:
    """Returns a map with two axes that are not pooled first in the graph."""
    if not set(pooled) & set(x.stored[:2]):
        return x
    others = [axis for axis in x.stored if axis not in pooled]
    if len(others) < 2:
        raise Unsupported("it pools all axes but one")
    rest = sorted(set(x.stored) - set(others[:2]))
    return as_stored(x, (*others[:2], *rest), graph)
