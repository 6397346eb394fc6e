"""Runs nonlinearities on a finer grid: interpolation, activation, low-pass filter.

An activation begins where a nonlinear operation reads a map whose spatial axes are known. The map
is interpolated, and becomes a `Pending` one whose stride is that of the finer grid: elementwise
operations pass it, whatever else reads it gets the filtered map. Where the map waits for the stride
of a convolution already, that follows after the filter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from aa_flax.errors import InputError
from aa_flax.ops.finer import FineGrid
from aa_flax.transform.axes import ACTIVATIONS, COMPARISONS, POWERS, Map
from aa_flax.transform.decisions import Refused, Sampler
from aa_flax.transform.interpreter import Interpreter, Origin, rule
from aa_flax.transform.jaxpr import eqns_in, sub_jaxprs
from aa_flax.transform.sites import Row, Site, site_of
from aa_flax.transform.values import Pending, Value, bare, channels_last_shape, on_channels_last

# Interpolation commutes with these where all other operands are constants of a map.
_AFFINE = ("add", "sub", "mul", "div", "neg", "convert_element_type", "copy", "reduce_precision")
_PRODUCTS = POWERS | {"mul", "div"}


@dataclass
class Restored:
    """Filters a map of the finer grid, then subsamples as the site does that it comes from."""

    grid: FineGrid
    coarse: Sampler | None

    def __call__(self, x: Array) -> Array:
        y = self.grid.coarser(x)
        return self.coarse(y) if self.coarse else y

    def filtered(self, x: Array) -> Array:
        """Returns the map of which the site's pool keeps some positions."""
        y = self.grid.coarser(x)
        return self.coarse.filtered(y) if self.coarse else y

    @property
    def decides(self) -> bool:
        return self.coarse is not None and self.coarse.decides


def is_fine(value: Value) -> bool:
    """Checks whether a value is a map on the finer grid."""
    return isinstance(value, Pending) and bool(value.origins)


def map_in(run: Interpreter, value: Value) -> Map | None:
    """Returns facts about a value that the finer grid can represent, and None for any other.

    Statistics over channels are not among these: what normalizes stays as it is.
    """
    m = run.map_of(value)
    if m is None or m.reduced or is_fine(value):
        return m if is_fine(value) else None
    is_large = any(n > 1 for n, role in zip(value.shape, m.roles, strict=True) if role == "s")
    return m if is_large and jnp.issubdtype(bare(value).dtype, jnp.floating) else None


def is_curved(run: Interpreter, eqn: Any, inputs: Sequence[Value]) -> bool:
    """Checks whether an equation is nonlinear in a map, or in several together."""
    if run.options.activations is None:
        return False
    maps, name = [map_in(run, v) for v in inputs], eqn.primitive.name
    if name == "select_n":  # linear for a given mask
        return is_fine(inputs[0])
    if name in ("mul", "div"):
        return maps[1] is not None and (maps[0] is not None or name == "div")
    return name in ACTIVATIONS | COMPARISONS | POWERS and any(maps)


def begin(run: Interpreter, eqn: Any, inputs: Sequence[Value]) -> Any:
    """Returns the key of an activation that begins with an equation, or None if it is refused."""
    key, site, options = run.key(eqn), _site(run, eqn, inputs), run.options
    if options.where is not None and not options.where(site):
        leave(run, eqn, inputs, options.refusal)
        return None
    run.begun[key] = Row(site, f"on a grid {options.activations} times as fine, then filter", "", 0)
    return key


def leave(run: Interpreter, eqn: Any, inputs: Sequence[Value], reason: str) -> None:
    """Reports an activation that stays as it is; a square or product may as well normalize."""
    if eqn.primitive.name not in _PRODUCTS:
        run.record(eqn, _site(run, eqn, inputs), reason=reason)


def _site(run: Interpreter, eqn: Any, inputs: Sequence[Value]) -> Site:
    value, m = next((v, m) for v in inputs if (m := map_in(run, v)))
    ones = (1,) * m.roles.count("s")
    site = site_of(eqn, run.layer(eqn, inputs), "activation", ones, ones)
    *_, channels = channels_last_shape(value.shape, m.roles)
    # A function with a derivative rule has its operation in its program: `max` in `jax.nn.relu`.
    inner = (found.primitive.name for p in sub_jaxprs(eqn) for found in eqns_in(p[0]))
    name = next((name for name in inner if name in ACTIVATIONS), eqn.primitive.name)
    return replace(site, channels=channels, shape=value.shape, primitive=name)


def joined(run: Interpreter, eqn: Any, inputs: Sequence[Value], *, curved: bool) -> list[Value]:
    """Returns the operands of an equation, with maps on the finer grid.

    All maps join a nonlinear operation. A linear one is joined by what its activation came from,
    for instance the second x in `x + x**3`; it commutes with the filter for all others.

    Raises:
        Refused: a map is too small for the filter.
    """
    origins = frozenset().union(*(v.origins for v in inputs if is_fine(v)))
    lifted = [_lifted(run, v, _borrowed(run, eqn, v, inputs), new=curved) for v in inputs]
    return [
        fine if fine is not None and (curved or fine.origins <= origins) else v
        for v, fine in zip(inputs, lifted, strict=True)
    ]


def _borrowed(run: Interpreter, eqn: Any, value: Value, inputs: Sequence[Value]) -> Map | None:
    """Returns facts about an operand: in a maximum of two maps, those of either."""
    if (m := map_in(run, value)) or eqn.primitive.name not in ("max", "min"):
        return m
    is_other = isinstance(value, Array) and value.dtype == eqn.outvars[0].aval.dtype
    same = (w for w in inputs if is_other and w.shape == value.shape)
    return next((m for w in same if (m := map_in(run, w))), None)


def _lifted(run: Interpreter, value: Value, m: Map | None, *, new: bool) -> Pending | None:
    """Returns a map on the finer grid, or None for what is not a map there.

    Without `new`, only one that has been interpolated already.
    """
    if is_fine(value):
        return value
    if id(value) in run.lifts:
        return run.lifts[id(value)][1]
    if m is None:
        return None
    fine = _by_source(run, value, new=new)
    if fine is None and new:
        fine = _interpolated(run, value, m)
    if fine is not None:
        run.lifts[id(value)] = value, fine
    return fine


def _by_source(run: Interpreter, value: Value, *, new: bool) -> Pending | None:
    """Returns a scaled or shifted map from what was scaled, so that this is interpolated once."""
    if (source := run.maps.get(id(value))) is None or source.eqn is None:
        return None
    eqn, inputs = source.eqn, source.inputs
    if eqn.primitive.name not in _AFFINE or is_curved(run, eqn, inputs):
        return None
    given = [_lifted(run, v, map_in(run, v), new=new) for v in inputs]
    if sum(v is not None for v in given) != 1:
        return None
    operands = [v if fine is None else fine for v, fine in zip(inputs, given, strict=True)]
    outputs = rule.apply(eqn.primitive.name, run, eqn, operands)
    return outputs and outputs[0]


def _interpolated(run: Interpreter, value: Value, m: Map) -> Pending:
    options, dense, roles = run.options, bare(value), m.roles
    grid = FineGrid(options.activations or 1, options.padding, ideal=options.pool == "ideal")
    if not isinstance(value, Pending):
        # Axes of one pixel have nothing to interpolate.
        roles = "".join("c" if n == 1 else r for n, r in zip(value.shape, roles, strict=True))
        ones, none = (1,) * value.ndim, frozenset()
        value = Pending(value, value.shape, ones, roles, sample=None, sites=none)
    if grid.ideal and not all(isinstance(n, int) for n in dense.shape):
        raise Refused("ideal filters need the size of the map, which is open")
    try:
        fine = on_channels_last(grid.finer, dense, roles)
    except InputError as error:
        sizes = "x".join(str(n) for n, role in zip(dense.shape, roles, strict=True) if role == "s")
        raise Refused(f"a map of {sizes} is too small for the filters") from error
    flops, _ = grid.flops(channels_last_shape(dense.shape, roles))
    strides = zip(value.strides, roles, strict=True)
    return replace(
        value,
        dense=fine,
        strides=tuple(s * grid.factor if role == "s" else s for s, role in strides),
        sample=Restored(grid, value.sample),
        origins=frozenset({Origin(flops)}),
    )


def begun(outputs: Iterable[Pending], key: Any, plain: Value = None) -> list[Pending]:
    """Returns the first results of an activation, as part of it."""
    return [replace(v, sites=v.sites | {key}, activated=True, plain=plain) for v in outputs]
