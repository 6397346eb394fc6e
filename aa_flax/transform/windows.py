"""Rules for strided pools, in windows or by reshape, and for strided slices."""

from collections.abc import Collection, Sequence
from functools import reduce
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array

from aa_flax import ops
from aa_flax.ops.padding import given_padding
from aa_flax.transform.decisions import Refused
from aa_flax.transform.interpreter import Interpreter, rule
from aa_flax.transform.jaxpr import bind
from aa_flax.transform.sites import Site, describe, is_reshape_pool, pooled_by_reshape
from aa_flax.transform.values import Spread, Value


def _roles(spatial: Collection[int], rank: int) -> str:
    """Returns the role of each axis: the first is the batch, unless it is spatial."""
    return "".join("s" if i in spatial else "n" if i == 0 else "c" for i in range(rank))


def _window_roles(eqn: Any) -> str:
    """Returns the roles of a pool's axes: spatial are those with a window or a stride."""
    sizes = zip(eqn.params["window_dimensions"], eqn.params["window_strides"], strict=True)
    spatial = [i for i, pair in enumerate(sizes) if max(pair) > 1]
    return _roles(spatial, len(eqn.params["window_strides"]))


def _blurred_max(
    run: Interpreter, eqn: Any, site: Site, x: Array, dense: Array, roles: str
) -> Array:
    extra = prod(site.window) * (prod(dense.shape) - prod(site.output_shape))
    return run.blurred(eqn, site, x, dense, roles, done="dense max, then blur", extra=extra)


def _blurred_sum(
    run: Interpreter, eqn: Any, site: Site, x: Array, covered: Array, roles: str, sizes: Any
) -> Array:
    extra = -prod(site.window) * prod(site.output_shape)
    means = run.blurred(eqn, site, x, covered, roles, done="blur in its place", extra=extra)
    return means * jnp.asarray(sizes, x.dtype)


@rule("reduce_window_max", "reduce_window", "reduce_window_min")
def max_pool(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value]:
    """A max pool becomes a dense maximum and a blur; other windows stay as they are."""
    site = describe(eqn, run.layer(eqn, inputs))
    x, *others = (run.settle(v, eqn) for v in inputs)
    if site is None or _is_one_number(inputs[0]):
        return _window(eqn, x, others)

    def dense() -> Array:
        return _window(eqn, x, others, (1,) * x.ndim)[0]

    def antialiased() -> Array:
        return _blurred_max(run, eqn, site, x, dense(), roles)

    roles = _window_roles(eqn)
    return run.attempt(eqn, site, antialiased, dense, roles) or _window(eqn, x, others)


def _window(
    eqn: Any, x: Array, others: Sequence[Array], strides: tuple[int, ...] = ()
) -> list[Array]:
    """Applies the window operation of an equation, with those strides or else its own.

    A square max pool gets the faster kernel of `aa_flax.ops` again, as convolutions do.
    """
    params = eqn.params
    sizes, strides = params["window_dimensions"], strides or params["window_strides"]
    inside = {(sizes[i], strides[i]) for i in range(1, x.ndim - 1)}
    ends = {sizes[0], sizes[-1], strides[0], strides[-1]}
    ends |= {*params["base_dilation"], *params["window_dilation"]}
    is_square = x.ndim >= 3 and ends == {1} and len(inside) == 1
    if eqn.primitive.name != "reduce_window_max" or not is_square:
        return bind(eqn, [x, *others], window_strides=strides)
    low_high = [(low, high, 0) for low, high in params["padding"]]
    with given_padding():
        padded = lax.pad(x, _lowest(x.dtype), low_high)
        return [ops.max_pool(padded, sizes[1], stride=strides[1])]


def _lowest(dtype: Any) -> np.ndarray:
    least = -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
    return np.array(least, dtype)


@rule("reduce_window_sum")
def average_pool(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A sum over windows, which the program divides by their size: a blur, times that size."""
    site = describe(eqn, run.layer(eqn, inputs))
    if site is None or _is_one_number(inputs[0]):
        return None
    x = run.settle(inputs[0], eqn)

    def antialiased() -> Array:
        sizes = _divisor(run.jaxpr, eqn, site)
        # Pixels that no window covers must not reach the blur either.
        axes = zip(site.shape, site.output_shape, eqn.params["window_strides"], strict=True)
        # `min` of symbolic sizes would be inconclusive.
        region = [out * s if out * s <= size else size for size, out, s in axes]
        covered = lax.slice(x, (0,) * x.ndim, region)
        return _blurred_sum(run, eqn, site, x, covered, roles, sizes)

    def dense() -> Array:
        return bind(eqn, [x], window_strides=(1,) * x.ndim)[0]

    roles = _window_roles(eqn)
    return run.attempt(eqn, site, antialiased, dense, roles)


def _is_one_number(value: Value) -> bool:
    """Checks for a map of one number, whose windows count pixels, for a division."""
    return isinstance(value, Spread) and value.value.size == 1


def _divisor(jaxpr: Any, eqn: Any, site: Site) -> np.ndarray:
    """Returns what the program divides the sums by: by it, means become sums again."""
    whole, (total,) = np.array(prod(site.window)), eqn.outvars
    if not any(sum(padding) for padding in eqn.params["padding"]):
        return whole
    # With padding there are two conventions: the program divides by one number, padding counted,
    # or by a map of how many pixels each window has.
    users = [other for other in jaxpr.eqns if any(v is total for v in other.invars)]
    if len(users) == 1 and (name := users[0].primitive.name) in ("div", "mul"):
        first, second = users[0].invars
        is_divided, other = name == "div" and first is total, second if first is total else first
        if (is_divided or name == "mul") and (isinstance(other, Literal) or not other.aval.shape):
            return whole
        if is_divided:
            return _pixel_counts(eqn)
    raise Refused("it is padded, and the divisor of its sum cannot be determined")


def _pixel_counts(eqn: Any) -> np.ndarray:
    """Returns the number of pixels in each window, padding not counted."""
    params, shape = eqn.params, eqn.invars[0].aval.shape
    counts = []
    for axis, size in enumerate(shape):
        low, _ = params["padding"][axis]
        starts = np.arange(eqn.outvars[0].aval.shape[axis]) * params["window_strides"][axis] - low
        stops = np.minimum(starts + params["window_dimensions"][axis], size)
        counts.append(stops - np.maximum(starts, 0))
    return reduce(np.multiply, np.ix_(*counts))


@rule("reshape")
def split(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """Remembers a reshape that may begin a pool: `x.reshape(n, h, 2, w, 2, c).mean((2, 4))`."""
    if not is_reshape_pool(eqn) or len(inputs) > 1:
        return None
    x = run.settle(inputs[0], eqn)
    outputs = bind(eqn, [x])
    run.splits[id(outputs[0])] = (outputs[0], x)
    return outputs


@rule("reduce_sum", "reduce_max")
def pool_of_split(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """The second half of such a pool: the reduction of what a reshape has split."""
    (value,) = inputs
    if id(value) not in run.splits:
        return None
    _, x = run.splits[id(value)]
    windows = pooled_by_reshape(x.shape, value.shape, eqn.params["axes"])
    if windows is None or len(windows) == 1:
        return None
    is_average = eqn.primitive.name == "reduce_sum"
    kind, primitive = "average pool" if is_average else "max pool", f"reshape, {eqn.primitive.name}"
    strides, output_shape = tuple(windows.values()), eqn.outvars[0].aval.shape
    layer, roles = run.layer(eqn, inputs), _roles(windows, x.ndim)
    site = Site(layer, kind, primitive, x.shape, output_shape, strides, strides, None)

    def dense() -> Array:
        sizes, ones = [windows.get(i, 1) for i in range(x.ndim)], (1,) * x.ndim
        start, combine = (
            (np.zeros((), x.dtype), lax.add) if is_average else (_lowest(x.dtype), lax.max)
        )
        return lax.reduce_window(x, start, combine, sizes, ones, "VALID")

    def antialiased() -> Array:
        if is_average:
            return _blurred_sum(run, eqn, site, x, x, roles, prod(strides))
        return _blurred_max(run, eqn, site, x, dense(), roles)

    return run.attempt(eqn, site, antialiased, dense, roles)


@rule("slice")
def strided_slice(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`x[:, ::2, ::2]` becomes a blur of the part that the slice covers."""
    site = describe(eqn, run.layer(eqn, inputs))
    if site is None:
        return None
    x, params = run.settle(inputs[0], eqn), eqn.params
    roles = _roles([i for i, stride in enumerate(params["strides"]) if stride > 1], x.ndim)

    def covered() -> Array:
        return lax.slice(x, params["start_indices"], params["limit_indices"])

    def antialiased() -> Array:
        return run.blurred(eqn, site, x, covered(), roles, done="blur", extra=0)

    return run.attempt(eqn, site, antialiased, covered, roles)
