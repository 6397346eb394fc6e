"""Sites that are left alone for what their constants are: look-ups, resizes, low-pass filters.

A look-up at every other index and a resize are reported. A strided convolution whose kernel is a
constant low-pass filter, and a slice of what one has filtered, are antialiased already.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.errors import InconclusiveDimensionOperation
from jax.extend.core import Literal

from aa_flax.errors import InputError
from aa_flax.transform.names import layer_name
from aa_flax.transform.places import (
    Place,
    bind,
    convolution_place,
    describe,
    is_blur,
    pooled_by_reshape,
    producers,
    sub_jaxprs,
)
from aa_flax.transform.report import Row

# Gains at the lowest frequency that aliases; of two equal taps with stride 2 it is 0.71.
_MOST_OF_FILTERS = 0.8  # BlurPool of 4 taps with stride 4 has 0.79
_MOST_OF_RESIZES = 0.6  # those of jax.image.resize with antialias=True have about 0.5

_MOVES = ("slice", "pad", "reshape", "transpose", "squeeze", "convert_element_type", "copy")


def left_alone(
    jaxpr: Any, consts: Sequence[Any], given: Sequence[Any] = (), caller: str = "unknown"
) -> dict[int, Row]:
    """Rows by identity of equations, of a program and of all that it calls.

    Args:
        consts: the program's constants.
        given: those of its arguments that are constants of its caller; None for all others.
        caller: the layer that calls it.

    Raises:
        InputError: a strided slice of an axis of symbolic size.
    """
    program, rows = _Program(jaxpr, consts, given, caller), {}
    for eqn in jaxpr.eqns:
        rule = _RULES.get(eqn.primitive.name)
        if rule and (row := rule(program, eqn)):
            rows[id(eqn)] = row
        for inner, inner_consts in sub_jaxprs(eqn):
            is_jit = eqn.primitive.name in ("jit", "pjit")
            looks_up = is_jit and any(e.primitive.name == "gather" for e in inner.eqns)
            known = [program.value(v) for v in eqn.invars] if looks_up else ()
            rows |= left_alone(inner, inner_consts, known, program.layer(eqn))
    return rows


class _Program:
    """A program, and the values of its variables that follow from constants alone."""

    def __init__(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[Any], caller: str):
        self.caller = caller
        self.producers = producers(jaxpr)
        known = [*zip(jaxpr.constvars, consts, strict=False)]
        known += zip(jaxpr.invars, given, strict=False)
        self.values = {v: x for v, x in known if x is not None and not isinstance(x, Tracer)}
        self.constant = set(self.values)
        for eqn in jaxpr.eqns:
            if not eqn.effects and all(map(self.is_constant, eqn.invars)):
                self.constant.update(eqn.outvars)

    def layer(self, eqn: Any) -> str:
        """The layer of an equation; JAX's own functions have no line of the caller's code."""
        name = layer_name(eqn, [])
        return self.caller if name == "unknown" else name

    def is_constant(self, variable: Any) -> bool:
        return isinstance(variable, Literal) or variable in self.constant

    def value(self, variable: Any) -> Any:
        """The variable's value, computed now; None: it depends on arguments or symbolic sizes."""
        if isinstance(variable, Literal):
            return variable.val
        if variable not in self.values and variable in self.constant:
            eqn = self.producers[variable]
            operands = [self.value(v) for v in eqn.invars]
            is_open = any(not isinstance(n, int) for v in eqn.outvars for n in v.aval.shape)
            with jax.ensure_compile_time_eval():
                outputs = [None] * len(eqn.outvars) if is_open else bind(eqn, operands)
            self.values.update(zip(eqn.outvars, outputs, strict=True))
        return self.values.get(variable)


def _gain(taps: np.ndarray, stride: float) -> np.ndarray:
    """Gain of filters (by columns) at the lowest frequency that a stride folds onto others."""
    wave = np.exp(1j * np.pi / stride * np.arange(len(taps)))
    return np.abs(wave @ taps) / np.maximum(np.abs(taps.sum(0)), 1e-12)


def _filters(program: _Program, eqn: Any, strides: Sequence[int]) -> bool:
    """Whether a convolution low-pass filters every channel alike for those strides."""
    if is_blur(eqn):
        return True
    spec, kernel = eqn.params["dimension_numbers"].rhs_spec, eqn.invars[1]
    if kernel.aval.shape[spec[1]] > 1 or program.value(kernel) is None:
        return False
    filters = np.asarray(program.value(kernel), np.float64).transpose(spec)[:, 0]
    if np.ptp(filters, axis=0).max(initial=0) > 1e-6 * np.abs(filters).max(initial=0):
        return False
    taps = [
        np.apply_over_axes(np.sum, filters[0], _others(i, strides)).ravel()
        for i in range(len(strides))
    ]
    return all(
        s == 1 or _gain(t, s) <= _MOST_OF_FILTERS for t, s in zip(taps, strides, strict=True)
    )


def _others(axis: int, axes: Sequence[Any]) -> list[int]:
    return [i for i in range(len(axes)) if i != axis]


def _filter(program: _Program, eqn: Any) -> Row | None:
    strides = eqn.params["window_strides"]
    if max(strides, default=1) == 1 or not _filters(program, eqn, strides):
        return None
    place = convolution_place(eqn, program.layer(eqn))
    return Row(place, "", "it is a blur: antialiased already", 0)


def _slice_of_filtered(program: _Program, eqn: Any) -> Row | None:
    place, source = describe(eqn, program.layer(eqn)), program.producers.get(eqn.invars[0])
    while source is not None and source.primitive.name in _MOVES:
        source = program.producers.get(source.invars[0])
    if place is None or source is None or source.primitive.name != "conv_general_dilated":
        return None
    count = len(source.params["window_strides"])
    if not _filters(program, source, (max(place.strides),) * count):
        return None
    return Row(place, "", "its array is blurred: antialiased already", 0)


def _look_up(program: _Program, eqn: Any) -> Row | None:
    """A gather at regular steps of 2 or more, as `jnp.take` and a nearest resize have them."""
    source, indices = eqn.invars
    axes, sizes = eqn.params["dimension_numbers"].start_index_map, eqn.params["slice_sizes"]
    if not program.is_constant(indices) or program.is_constant(source):
        return None
    found = program.value(indices)
    if found is None:
        _check_open_look_up(source.aval.shape, indices.aval.shape, axes)
        return None
    steps = [np.diff(np.unique(np.asarray(found)[..., k])) for k in range(len(axes))]
    strides = tuple(
        round(step.mean())
        for step, axis in zip(steps, axes, strict=True)
        if sizes[axis] == 1 and step.max(initial=0) > 1 and np.ptp(step) <= 1
    )
    if not strides:
        return None
    reason = (
        "a look-up by indices (or a nearest resize) is left as it is; x[:, ::2, ::2] is blurred"
    )
    return _row(program, eqn, source, "slice", strides, (1,) * len(strides), reason)


def _check_open_look_up(shape: Sequence[Any], indices: Sequence[Any], axes: Sequence[int]) -> None:
    """JAX makes a strided slice of an axis of symbolic size a look-up, which is not antialiased."""
    try:
        drops = prod(indices[:-1]) < prod(shape[i] for i in axes)
    except InconclusiveDimensionOperation:
        drops = True
    if drops:
        raise InputError(
            f"antialias cannot see which pixels a slice of {tuple(shape)} keeps while its size is "
            "open: give the sliced axes numbers"
        )


def _resize(program: _Program, eqn: Any) -> Row | None:
    """A product with weights that interpolate fewer values than there are, as a resize has it."""
    contracted, batch = eqn.params["dimension_numbers"]
    is_weight = [program.is_constant(v) and v.aval.ndim == 2 for v in eqn.invars]
    if sum(is_weight) != 1 or len(contracted[0]) != 1 or batch[0]:
        return None
    weights, source = sorted(eqn.invars, key=lambda v: v is not eqn.invars[is_weight.index(True)])
    values = program.value(weights)
    if values is None or source.aval.ndim < 3:
        return None
    matrix = np.moveaxis(np.asarray(values, np.float64), contracted[is_weight.index(True)][0], 0)
    before, after = matrix.shape
    centres = np.arange(before) @ matrix
    interpolates = np.abs(matrix.sum(0) - 1).max() < 1e-3 and np.diff(centres).min(initial=1) > 0
    if not interpolates or np.ptp(centres) < after - 0.999:  # closer than a pixel: a crop, or more
        return None
    inside = matrix[:, after // 4 : after - after // 4]
    reason = "an interpolation that aliases is left as it is: resize with antialias=True"
    if _gain(inside, before / after).max() <= _MOST_OF_RESIZES:
        reason = "it filters what it resizes: antialiased already"
    taps = int((np.abs(inside) > 1e-6).sum(0).max())
    return _row(program, eqn, source, "resize", (round(before / after),), (taps,), reason)


def _pool_along_one_axis(program: _Program, eqn: Any) -> Row | None:
    split = program.producers.get(eqn.invars[0])
    if split is None or split.primitive.name != "reshape":
        return None
    source, axes = split.invars[0], eqn.params["axes"]
    windows = pooled_by_reshape(source.aval.shape, split.outvars[0].aval.shape, axes) or {}
    if len(windows) != 1:
        return None
    kind = "average pool" if eqn.primitive.name == "reduce_sum" else "max pool"
    reason = "its axis is not one of an image, as far as a reshape can tell"
    return _row(
        program, eqn, source, kind, tuple(windows.values()), tuple(windows.values()), reason
    )


def _row(program, eqn, source, kind, strides, window, reason) -> Row:
    shapes = source.aval.shape, eqn.outvars[0].aval.shape
    name = eqn.primitive.name
    return Row(Place(program.layer(eqn), kind, name, *shapes, strides, window, None), "", reason, 0)


_RULES = {
    "conv_general_dilated": _filter,
    "slice": _slice_of_filtered,
    "gather": _look_up,
    "dot_general": _resize,
    **dict.fromkeys(("reduce_sum", "reduce_max"), _pool_along_one_axis),
}
