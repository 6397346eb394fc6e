"""Elementwise operations in ONNX."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from aa_flax.export.onnx_graph import Graph, Unsupported
from aa_flax.export.onnx_values import (
    Affine,
    Expanded,
    Reshaped,
    Spec,
    Tensor,
    Value,
    View,
    rule,
)
from aa_flax.export.onnx_writing import (
    aligned,
    as_stored,
    compact,
    inside,
    outside,
    written,
)

Params = Mapping[str, Any]
_ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9}
_ELEMENT_TYPES |= {"uint16": 4, "int16": 5, "uint32": 12, "uint64": 13}  # TensorProto.DataType


def pointwise(graph: Graph, out: Spec, operator: str, *values: Value, **attributes: Any) -> Value:
    """Applies an elementwise operator; what is repeated or cut along an axis stays so."""
    if (inner := _inside(values)) is not None:
        source = next(x for x in inner if x.shape)
        result = pointwise(graph, Spec(source.shape, out.dtype), operator, *inner, **attributes)
        return outside(next(x for x in values if inside(x) is source), result, graph)
    order = _order(out, values)
    names, sizes = [], []
    for value in values:
        name, shape = _operand(value, order, graph)
        names.append(name)
        sizes.append(shape or (1,) * len(order))
    full = [any(shape[i] != 1 for shape in sizes) for i in range(len(order))]
    shape = tuple(n if f else 1 for n, f in zip(out.shape, full, strict=True))
    result = Tensor(graph.add(operator, *names, **attributes), shape, out.dtype, order)
    return result if shape == out.shape else Expanded(result, tuple(range(len(shape))), out.shape)


def _inside(values: tuple[Value, ...]) -> list[Value] | None:
    """Returns operands that have the entries of those given before a reshape or a padding."""
    inner: list[Value] = []
    for value in values:
        if (small := constant_of(value)) is not None and small.size == 1:
            inner.append(small.reshape(()))
        elif (source := inside(value)) is None:
            return None
        else:
            inner.append(source)
    long = [value for value, x in zip(values, inner, strict=True) if x.shape]
    is_one = len(long) == 1 or all(isinstance(x, Reshaped) for x in long)
    return (
        inner if long and is_one and len({tuple(x.shape) for x in inner if x.shape}) == 1 else None
    )


def constant_of(value: Value) -> np.ndarray | None:
    """Returns a constant without repetition, or None for other values."""
    if isinstance(value, Expanded) and isinstance(getattr(value.source, "name", ""), np.ndarray):
        assert isinstance(value.source, Tensor)
        value = np.broadcast_to(aligned(value, range(len(value.shape)), Graph()).name, value.shape)
    return compact(value) if isinstance(value, np.ndarray) else None


def _order(out: Spec, values: tuple[Value, ...]) -> tuple[int, ...]:
    """Returns the order of axes of the first operand that is not repeated, if there is one."""
    rank = len(out.shape)
    for kinds in (Tensor | View | Affine, Expanded):
        for value in values:
            base = value.source if isinstance(value, Expanded) else value
            base = base.base if isinstance(base, View | Affine) else base
            if isinstance(value, kinds) and isinstance(base, Tensor) and len(base.shape) == rank:
                return base.stored
    return tuple(range(rank))


def _operand(value: Value, order: tuple[int, ...], graph: Graph) -> tuple[Any, tuple[int, ...]]:
    if isinstance(value, np.ndarray):
        small = compact(value)
        return (small.transpose(order) if small.ndim == len(order) else small), small.shape
    if isinstance(value, Expanded):
        x = aligned(value, order, graph)
    else:
        x = written(value, graph)
        x = as_stored(x, order, graph) if x.shape else x
    return x.name, x.shape


# Operations that ONNX has


def _same(operator: str, graph: Graph, out: Spec, params: Params, *values: Value) -> Value:
    return pointwise(graph, out, operator, *values)


for _name in ("abs", "ceil", "cos", "erf", "exp", "floor", "log", "sign", "sin", "sqrt", "tan"):
    rule(_name)(partial(_same, _name.capitalize()))
for _name in ("acos", "acosh", "asin", "asinh", "atan", "atanh", "cosh", "sinh", "tanh"):
    rule(_name)(partial(_same, _name.capitalize()))
for _name, _operator in {
    "logistic": "Sigmoid",
    "eq": "Equal",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "lt": "Less",
    "le": "LessOrEqual",
}.items():
    rule(_name)(partial(_same, _operator))


@rule("pow")
def _power(graph: Graph, out: Spec, params: Params, x: Value, exponent: Value) -> Value:
    return pointwise(graph, out, "Pow", x, exponent)


@rule("integer_pow")
def _integer_power(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    if params["y"] == 2:
        return pointwise(graph, out, "Mul", x, x)
    return pointwise(graph, out, "Pow", x, np.array(params["y"], out.dtype))


@rule("square")
def _square(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    return pointwise(graph, out, "Mul", x, x)


@rule("rsqrt")
def _inverse_root(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    return pointwise(graph, out, "Reciprocal", pointwise(graph, out, "Sqrt", x))


@rule("log1p")
def _log_of_more(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    return pointwise(graph, out, "Log", pointwise(graph, out, "Add", x, np.ones((), out.dtype)))


@rule("expm1")
def _less_than_exp(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    return pointwise(graph, out, "Sub", pointwise(graph, out, "Exp", x), np.ones((), out.dtype))


@rule("erfc")
def _complement(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    return pointwise(graph, out, "Sub", np.ones((), out.dtype), pointwise(graph, out, "Erf", x))


@rule("exp2")
def _power_of_two(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    return pointwise(graph, out, "Pow", np.full((), 2, out.dtype), x)


@rule("round")
def _round(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    if int(params["rounding_method"]) != 1:  # ONNX rounds halves to even numbers
        raise Unsupported("it rounds halves away from zero")
    return pointwise(graph, out, "Round", x)


@rule("rem")
def _remainder(graph: Graph, out: Spec, params: Params, a: Value, b: Value) -> Value:
    return pointwise(graph, out, "Mod", a, b, fmod=1)


@rule("is_finite")
def _is_finite(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    # The difference of an infinity, or of NaN, from itself is NaN.
    difference = pointwise(graph, Spec(out.shape, np.dtype(np.float32)), "Sub", x, x)
    return pointwise(graph, out, "Not", pointwise(graph, out, "IsNaN", difference))


@rule("ne")
def _is_different(graph: Graph, out: Spec, params: Params, a: Value, b: Value) -> Value:
    return pointwise(graph, out, "Not", pointwise(graph, out, "Equal", a, b))


def _logical(operator: str, graph: Graph, out: Spec, params: Params, *values: Value) -> Value:
    of_numbers = "" if out.dtype == np.bool_ else "Bitwise"
    return pointwise(graph, out, of_numbers + operator, *values)


for _name in ("and", "not", "or", "xor"):
    rule(_name)(partial(_logical, _name.capitalize()))


@rule("select_n")
def _select(graph: Graph, out: Spec, params: Params, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or _dtype(which) != np.bool_:
        raise Unsupported("it chooses among more than two values")
    if (small := constant_of(which)) is not None and small.size and np.all(small == small.flat[0]):
        return cases[int(small.flat[0])]
    return pointwise(graph, out, "Where", which, cases[1], cases[0])


@rule("convert_element_type")
def _convert(graph: Graph, out: Spec, params: Params, x: Value) -> Value:
    if x.shape == out.shape and _dtype(x) == out.dtype:
        return x
    if out.dtype.name not in _ELEMENT_TYPES:
        raise Unsupported(f"programs that compute in {out.dtype}")
    return pointwise(graph, out, "Cast", x, to=_ELEMENT_TYPES[out.dtype.name])


def _dtype(x: Any) -> Any:
    """Returns the type of a value."""
    if isinstance(x, Tensor | np.ndarray):
        return x.dtype
    return _dtype(x.base if isinstance(x, Affine | View) else x.source)
