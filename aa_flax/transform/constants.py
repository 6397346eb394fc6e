"""Sites that are left alone because of their constants: look-ups, resizes, low-pass filters.

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
from aa_flax.ops.lowpass import nyquist_gain
from aa_flax.transform.jaxpr import Rules, bind, producers, sub_jaxprs
from aa_flax.transform.sites import (
    Row,
    Site,
    convolution_site,
    describe,
    is_blur,
    layer_name,
    pooled_by_reshape,
    site_of,
)
from aa_flax.transform.values import regrouped

# Gains at the lowest frequency that aliases; that of two equal taps with stride 2 is 0.71.
_MOST_OF_FILTERS = 0.8  # BlurPool of 4 taps with stride 4 has 0.79
_MOST_OF_RESIZES = 0.6  # those of jax.image.resize with antialias=True have about 0.5

_MOVES = ("slice", "pad", "reshape", "transpose", "squeeze", "convert_element_type", "copy")

# A rule maps a program and one of its equations to a site and why it is left alone, or to None.
_rule = Rules()


def left_alone(
    jaxpr: Any, consts: Sequence[Any], given: Sequence[Any] = (), caller: str = "unknown"
) -> dict[int, Row]:
    """Returns rows by identity of their equations, of a program and of all that it calls.

    Args:
        given: those of its arguments that are constants of its caller; None for all others.
        caller: the layer that calls it.
    """
    program, rows = _Program(jaxpr, consts, given, caller), {}
    for eqn in jaxpr.eqns:
        if found := _rule.apply(eqn.primitive.name, program, eqn):
            site, reason = found
            rows[id(eqn)] = Row(site, "", reason, 0)
        for inner, inner_consts in sub_jaxprs(eqn):
            is_jit = eqn.primitive.name in ("jit", "pjit")
            # Constants are followed into calls only for `jnp.take`, which is jitted: its indices.
            looks_up = is_jit and any(e.primitive.name == "gather" for e in inner.eqns)
            known = [program.value(v) for v in eqn.invars] if looks_up else ()
            rows |= left_alone(inner, inner_consts, known, program.layer(eqn))
    return rows


class _Program:
    """A program, and the values of its variables that follow from constants alone."""

    def __init__(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[Any], caller: str):
        self.caller = caller
        self.producers = producers(jaxpr)
        known = zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *given), strict=False)
        self.values = {v: x for v, x in known if x is not None and not isinstance(x, Tracer)}
        self.constant = set(self.values)
        for eqn in jaxpr.eqns:
            if not eqn.effects and all(map(self.is_constant, eqn.invars)):
                self.constant.update(eqn.outvars)

    def layer(self, eqn: Any) -> str:
        """Returns the layer of an equation; JAX's functions have no line of the caller's code."""
        name = layer_name(eqn)
        return self.caller if name == "unknown" else name

    def is_constant(self, variable: Any) -> bool:
        return isinstance(variable, Literal) or variable in self.constant

    def value(self, variable: Any) -> Any:
        """Returns a variable's value, or None if it depends on arguments or symbolic sizes."""
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


def _filters(program: _Program, eqn: Any, strides: Sequence[int]) -> bool:
    """Checks whether a convolution low-pass filters every channel alike for those strides."""
    if is_blur(eqn):
        return True
    spec, kernel = eqn.params["dimension_numbers"].rhs_spec, eqn.invars[1]
    if kernel.aval.shape[spec[1]] > 1 or program.value(kernel) is None:
        return False
    filters = np.asarray(program.value(kernel), np.float64).transpose(spec)[:, 0]
    if np.ptp(filters, axis=0).max(initial=0) > 1e-6 * np.abs(filters).max(initial=0):
        return False
    axes = range(len(strides))
    # The filter's response along one axis, at frequency 0 along all others.
    taps = (filters[0].sum(tuple(j for j in axes if j != i)) for i in axes)
    pairs = zip(taps, strides, strict=True)
    return all(s == 1 or nyquist_gain(t, s) <= _MOST_OF_FILTERS for t, s in pairs)


@_rule("conv_general_dilated")
def _filter(program: _Program, eqn: Any) -> tuple[Site, str] | None:
    strides = eqn.params["window_strides"]
    if max(strides, default=1) == 1 or not _filters(program, eqn, strides):
        return None
    return convolution_site(eqn, program.layer(eqn)), "it is a blur: antialiased already"


@_rule("slice")
def _slice_of_filtered(program: _Program, eqn: Any) -> tuple[Site, str] | None:
    site, source = describe(eqn, program.layer(eqn)), program.producers.get(eqn.invars[0])
    while source is not None and source.primitive.name in _MOVES:
        source = program.producers.get(source.invars[0])
    if site is None or source is None or source.primitive.name != "conv_general_dilated":
        return None
    if not _filters(program, source, (max(site.strides),) * len(source.params["window_strides"])):
        return None
    return site, "its array is blurred: antialiased already"


@_rule("gather")
def _look_up(program: _Program, eqn: Any) -> tuple[Site, str] | None:
    """A gather at regular steps of 2 or more, as `jnp.take` and a nearest resize do."""
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
    site = site_of(eqn, program.layer(eqn), "slice", strides, (1,) * len(strides), source=source)
    nearest = "a look-up by indices (or a nearest resize)"
    return site, f"{nearest} is left as it is; x[:, ::2, ::2] is blurred"


def _check_open_look_up(shape: Sequence[Any], indices: Sequence[Any], axes: Sequence[int]) -> None:
    """Refuses a strided slice of an axis of symbolic size, which JAX makes a look-up."""
    try:
        drops = prod(indices[:-1]) < prod(shape[i] for i in axes)
    except InconclusiveDimensionOperation:
        drops = True
    if drops:
        raise InputError(
            f"antialias cannot see which pixels a slice of {tuple(shape)} keeps while its size is "
            "open: give the sliced axes numbers"
        )


@_rule("dot_general")
def _resize(program: _Program, eqn: Any) -> tuple[Site, str] | None:
    """A product with weights that interpolate at fewer positions, as in a resize."""
    contracted, (batch, _) = eqn.params["dimension_numbers"]
    weights = [i for i, v in enumerate(eqn.invars) if program.is_constant(v) and v.aval.ndim == 2]
    if len(weights) != 1 or len(contracted[0]) != 1 or batch:
        return None
    (which,) = weights
    values, source = program.value(eqn.invars[which]), eqn.invars[1 - which]
    if values is None or source.aval.ndim < 3:
        return None
    matrix = np.moveaxis(np.asarray(values, np.float64), contracted[which][0], 0)
    before, after = matrix.shape
    centres = np.arange(before) @ matrix
    interpolates = np.abs(matrix.sum(0) - 1).max() < 1e-3 and np.diff(centres).min(initial=1) > 0
    if not interpolates or np.ptp(centres) < after - 0.999:  # a crop, or a larger image
        return None
    # Weights at the border are normalized over fewer pixels, so the gain is that of the middle.
    inside = matrix[:, after // 4 : after - after // 4]
    reason = "an interpolation that aliases is left as it is: resize with antialias=True"
    if nyquist_gain(inside, before / after).max() <= _MOST_OF_RESIZES:
        reason = "it filters what it resizes: antialiased already"
    taps = int((np.abs(inside) > 1e-6).sum(0).max())
    layer, strides = program.layer(eqn), (round(before / after),)
    return site_of(eqn, layer, "resize", strides, (taps,), source=source), reason


@_rule("reshape")
def _space_to_depth(program: _Program, eqn: Any) -> tuple[Site, str] | None:
    """Pixels that become channels by reshape, transpose and reshape: patches, patch merging."""
    moved = program.producers.get(eqn.invars[0])
    if moved is None or moved.primitive.name != "transpose":
        return None
    split = program.producers.get(moved.invars[0])
    if split is None or split.primitive.name != "reshape":
        return None
    source, order = split.invars[0], moved.params["permutation"]
    shapes = [v.aval.shape for v in (source, split.outvars[0], moved.outvars[0], eqn.outvars[0])]
    if not all(isinstance(n, int) for shape in shapes for n in shape):
        return None
    pairs = [right for left, right in regrouped(*shapes[:2]) or () if len(left) < len(right) == 2]
    outer, inner = ({order.index(pair[i]) for pair in pairs} for i in (0, 1))
    merged = [set(left) for left, right in regrouped(*shapes[2:]) or () if len(right) == 1]
    if len(pairs) < 2 or not any(inner < axes and not outer & axes for axes in merged):
        return None
    strides = tuple(shapes[1][inner] for _, inner in pairs)
    reason = "it drops nothing, but the layer that reads it aliases: blur the map before, stride 1"
    return site_of(
        eqn, program.layer(eqn), "space to depth", strides, strides, source=source
    ), reason


@_rule("reduce_sum", "reduce_max")
def _pool_along_one_axis(program: _Program, eqn: Any) -> tuple[Site, str] | None:
    """A pool by reshape along one axis, which may as well be a signal's or a list's."""
    split = program.producers.get(eqn.invars[0])
    if split is None or split.primitive.name != "reshape":
        return None
    source, axes = split.invars[0], eqn.params["axes"]
    windows = pooled_by_reshape(source.aval.shape, split.outvars[0].aval.shape, axes) or {}
    if len(windows) != 1:
        return None
    kind = "average pool" if eqn.primitive.name == "reduce_sum" else "max pool"
    layer, sizes = program.layer(eqn), tuple(windows.values())
    reason = "its axis is not known to be one of an image"
    return site_of(eqn, layer, kind, sizes, sizes, source=source), reason
