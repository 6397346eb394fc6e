"""Places: the operations of a traced program that subsample, and what can be said of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Literal

from jax.extend.core import Literal as Constant

from aa_flax.ops.lowpass import BLUR_SCOPE
from aa_flax.transform.values import regrouped

Kind = Literal["convolution", "max pool", "average pool", "slice", "resize", "other pool"]

_WINDOWS: dict[str, Kind] = {
    "reduce_window_max": "max pool",
    "reduce_window_sum": "average pool",
    "reduce_window": "other pool",
    "reduce_window_min": "other pool",
    "select_and_gather_add": "other pool",
}


@dataclass(frozen=True)
class Place:
    """One strided operation of a function, as `where=` and a report see it.

    Args:
        layer: where it comes from: the names of modules and scopes (Linen, Haiku,
            `jax.named_scope`), the parameter it reads (`params.conv1.kernel`), or its line of code.
        kind: `convolution`, `max pool`, `average pool`, `slice`, `resize` or
            `other pool`.
        primitive: JAX's name of the operation.
        shape, output_shape: of its input and its output, in the function's own layout.
        strides: for each spatial axis.
        window: the kernel's or the window's extent along each spatial axis.
        channels: of its input, or None where the operation does not say which axis they are.
    """

    layer: str
    kind: Kind
    primitive: str
    shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    strides: tuple[int, ...]
    window: tuple[int, ...]
    channels: int | None


def describe(eqn: Any, layer: str) -> Place | None:
    """The place that an equation of a program is; None: it does not subsample."""
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        strided = max(eqn.params["window_strides"], default=1) > 1
        return convolution_place(eqn, layer) if strided and not is_blur(eqn) else None
    if name in _WINDOWS:
        return _window(eqn, layer, _WINDOWS[name])
    if name == "slice":
        return _slice(eqn, layer)
    return None


def _place(eqn: Any, layer: str, kind: Kind, **more: Any) -> Place:
    shape, output = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return Place(layer, kind, eqn.primitive.name, shape, output, **more)


def convolution_place(eqn: Any, layer: str) -> Place:
    """The place that a convolution is."""
    strides = eqn.params["window_strides"]
    numbers = eqn.params["dimension_numbers"]
    kernel = eqn.invars[1].aval.shape
    window = tuple(kernel[i] for i in numbers.rhs_spec[2:])
    channels = eqn.invars[0].aval.shape[numbers.lhs_spec[1]]
    return _place(eqn, layer, "convolution", strides=strides, window=window, channels=channels)


def members(jaxpr: Any, eqn: Any) -> int:
    """Members of an ensemble whose convolutions `jax.vmap` has made the groups of one.

    It merges the members into the channels of both operands, just before the convolution.
    """
    numbers = eqn.params["dimension_numbers"]
    axes = numbers.lhs_spec[1], numbers.rhs_spec[0]
    pairs = zip(eqn.invars, axes, strict=True)
    merged = {_merged(producers(jaxpr), v, axis) for v, axis in pairs}
    return merged.pop() if len(merged) == 1 else 1


def _merged(producer: dict[Any, Any], variable: Any, axis: int) -> int:
    """The size of the axes that reshapes have merged into an axis, in front of it."""
    eqn = None if isinstance(variable, Constant) else producer.get(variable)
    if eqn is None or eqn.primitive.name not in ("reshape", "transpose"):
        return 1
    (source,) = eqn.invars
    order = eqn.params.get("permutation", eqn.params.get("dimensions"))
    order = range(source.aval.ndim) if order is None else order
    sizes = [source.aval.shape[i] for i in order]
    groups = regrouped(sizes, eqn.outvars[0].aval.shape) or []
    left, right = next((g for g in groups if axis in g[1]), ([], []))
    if right != [axis] or len(left) not in (1, 2):
        return 1
    return prod(sizes[i] for i in left[:-1]) * _merged(producer, source, order[left[-1]])


def bind(eqn: Any, operands: Sequence[Any], **changes: Any) -> list[Any]:
    """The operation of an equation, of other operands or with some parameters changed."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changes})
    if isinstance(params, tuple):  # before JAX 0.10: functions apart
        functions, params = params
        operands = [*functions, *operands]
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*operands, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def producers(jaxpr: Any) -> dict[Any, Any]:
    """The equation that computes each variable of a program."""
    return {variable: eqn for eqn in jaxpr.eqns for variable in eqn.outvars}


def _window(eqn: Any, layer: str, kind: Kind) -> Place | None:
    strides, window = eqn.params["window_strides"], eqn.params["window_dimensions"]
    axes = [i for i, (s, w) in enumerate(zip(strides, window, strict=True)) if s > 1 or w > 1]
    if max(strides, default=1) == 1:
        return None
    inside = [tuple(sizes[i] for i in axes) for sizes in (strides, window)]
    return _place(eqn, layer, kind, strides=inside[0], window=inside[1], channels=None)


def _slice(eqn: Any, layer: str) -> Place | None:
    strides = eqn.params["strides"]
    if strides is None or max(strides, default=1) == 1:
        return None
    inside = tuple(s for s in strides if s > 1)
    window = (1,) * len(inside)
    return _place(eqn, layer, "slice", strides=inside, window=window, channels=None)


def is_blur(eqn: Any) -> bool:
    """Whether an equation is BlurPool's own: nothing has to be antialiased there."""
    return BLUR_SCOPE in str(eqn.source_info.name_stack)


def pooled_by_reshape(
    shape: tuple[int, ...], split: tuple[int, ...], axes: tuple[int, ...]
) -> dict[int, int] | None:
    """Windows, by axis, of a pool written as a reshape and a reduction; None: it is none.

    An axis of `shape` that `split` has as two, of which the reduction takes the inner one, is
    pooled; there must be one to three adjoining ones.
    """
    windows, i = {}, 0
    for axis, size in enumerate(shape):
        if i < len(split) and split[i] == size and not (size == 1 and _is_split(split, i, size)):
            i += 1
        elif _is_split(split, i, size) and i + 1 in axes and i not in axes:
            windows[axis] = split[i + 1]
            i += 2
        else:
            return None
    adjoining = all(b - a == 1 for a, b in pairwise(windows))
    complete = i == len(split) and len(axes) == len(windows)
    return windows if complete and adjoining and len(windows) in (1, 2, 3) else None


def _is_split(split: tuple[int, ...], i: int, size: int) -> bool:
    return i + 1 < len(split) and prod(split[i : i + 2]) == size and split[i + 1] > 1


def sub_jaxprs(eqn: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The programs inside an equation, each with its constants."""
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if is_jaxpr(inner):
                yield opened(inner)


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter of an equation is a program, open or closed."""
    return hasattr(value, "eqns") or (hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns"))


def opened(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """A program and its constants, whether it was closed or not."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return inner, tuple(getattr(jaxpr, "consts", ()))


def places_in(jaxpr: Any) -> Iterator[Any]:
    """Equations that subsample, in a program and in all that it calls."""
    for eqn in jaxpr.eqns:
        is_form = eqn.primitive.name == "aa_flax_form"  # it may hide one
        if describe(eqn, "") is not None or is_reshape_pool(eqn) or is_form:
            yield eqn
        for inner, _ in sub_jaxprs(eqn):
            yield from places_in(inner)


def is_reshape_pool(eqn: Any) -> bool:
    """Whether an equation may be the first half of a pool: one that splits axes of a map."""
    if eqn.primitive.name != "reshape" or eqn.params["dimensions"] is not None:
        return False
    before, after = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    return 2 <= len(after) - len(before) <= 3


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program and of all that it calls."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner, _ in sub_jaxprs(eqn):
            yield from equations(inner)


def has_places(jaxpr: Any) -> bool:
    """Whether a program, or one that it calls, may subsample."""
    return next(places_in(jaxpr), None) is not None
