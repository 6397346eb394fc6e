"""Rules for strided pools, in windows or by reshape, and for strided slices."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array

from aa_flax import ops
from aa_flax.ops.padding import given_padding
from aa_flax.transform import pointwise
from aa_flax.transform.interpreter import Interpreter, rule
from aa_flax.transform.options import Options, Refused
from aa_flax.transform.sites import Site, describe, is_reshape_pool, pooled_by_reshape
from aa_flax.transform.values import Spread, Value, on_channels_last

_DENSE_MAX, _BLUR_FOR_MEAN = "dense max, then blur", "blur in its place"  # in reports


@rule("reduce_window_max", "reduce_window", "reduce_window_min")
def max_pool(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value]:
    """A max pool becomes a dense maximum and a blur; other windows stay as they are."""
    site = describe(eqn, run.layer(eqn, inputs))
    x, *others = (run.settle(v, eqn) for v in inputs)
    if site is None:
        return _window(run, eqn, x, others)
    ones = (1,) * x.ndim

    def antialiased() -> Array:
        if site.kind != "max pool":
            raise Refused(f"{site.primitive} is no pool that is known here")
        if max(eqn.params["base_dilation"]) > 1:
            raise Refused("its input is dilated")
        roles = _window_roles(eqn)
        shape = jax.eval_shape(lambda x: _window(run, eqn, x, others, ones)[0], x).shape
        sampler = run.sampler(eqn, site, shape, roles, x)
        extra = prod(site.window) * (prod(shape) - prod(site.output_shape))
        run.record(eqn, site, done=_DENSE_MAX, extra=extra + sampler.flops(site.output_shape))
        (y,) = _window(run, eqn, x, others, ones)
        return on_channels_last(sampler, y, roles)

    return run.attempt(eqn, site, antialiased, lambda: _window(run, eqn, x, others))


def _window(
    run: Interpreter,
    eqn: Any,
    x: Array,
    others: Sequence[Array],
    strides: Sequence[int] | None = None,
) -> list[Array]:
    """Applies the window operation of an equation, with those strides or its own.

    A square max pool gets the faster kernel of `aa_flax.ops` again: see `convolutions.convolve`.
    """
    params = eqn.params
    strides = tuple(params["window_strides"] if strides is None else strides)
    sizes, dilations = (
        params["window_dimensions"],
        (params["base_dilation"], params["window_dilation"]),
    )
    inside = {(sizes[i], strides[i]) for i in range(1, x.ndim - 1)}
    ends = {sizes[0], sizes[-1], strides[0], strides[-1], *dilations[0], *dilations[1]}
    is_square = x.ndim >= 3 and ends == {1} and len(inside) == 1
    if eqn.primitive.name != "reduce_window_max" or not is_square:
        return run.bind(eqn, [x, *others], window_strides=strides)
    low_high = [(low, high, 0) for low, high in params["padding"]]
    with given_padding():
        padded = lax.pad(x, _lowest(x.dtype), low_high)
        return [ops.max_pool(padded, sizes[1], stride=strides[1])]


def _lowest(dtype: Any) -> np.ndarray:
    least = -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
    return np.array(least, dtype)


def _window_roles(eqn: Any) -> str:
    """Returns the role of each axis of a pool: spatial are those with a window or a stride."""
    sizes = zip(eqn.params["window_dimensions"], eqn.params["window_strides"], strict=True)
    return "".join("s" if max(pair) > 1 else "n" if i == 0 else "c" for i, pair in enumerate(sizes))


@rule("reduce_window_sum")
def average_pool(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A sum over windows, which the program divides by their size: a blur, times that size."""
    site = describe(eqn, run.layer(eqn, inputs))
    # The sum of one repeated number counts the pixels in each window, for the division.
    if site is None or (isinstance(inputs[0], Spread) and inputs[0].value.size == 1):
        return None
    x = run.settle(inputs[0], eqn)

    def antialiased() -> Array:
        _check_average(run.options, site)
        sizes, region = _window_sizes(run.jaxpr, eqn, site)
        roles = _window_roles(eqn)
        covered = lax.slice(x, (0,) * x.ndim, region)
        sampler = run.sampler(eqn, site, covered.shape, roles, x)
        extra = sampler.flops(site.output_shape) - prod(site.window) * prod(site.output_shape)
        run.record(eqn, site, done=_BLUR_FOR_MEAN, extra=extra)
        return on_channels_last(sampler, covered, roles) * jnp.asarray(sizes, x.dtype)

    return run.attempt(eqn, site, antialiased, lambda: run.bind(eqn, [x]))


def _check_average(options: Options, site: Site) -> None:
    """Leaves an average pool alone where a blur would not be the better filter.

    Raises:
        Refused: it is over the whole map, or wider than the blur.
    """
    pairs = zip(site.shape, site.output_shape, strict=True)
    pooled = [out for size, out in pairs if size != out or size == 1]
    if pooled and all(size == 1 for size in pooled):
        raise Refused("it is the mean of the whole map: nothing is left to alias")
    if max(site.strides) > 2 and options.pool is None and min(site.window) >= options.filter_size:
        raise Refused(
            f"a mean of {min(site.window)} pixels is a wider filter than filter_size="
            f"{options.filter_size}"
        )


def _window_sizes(jaxpr: Any, eqn: Any, site: Site) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns the divisor of the sums, and the part of the map that the windows cover.

    Raises:
        Refused: the divisor cannot be determined.
    """
    params = eqn.params
    if max(*params["base_dilation"], *params["window_dilation"]) > 1:
        raise Refused("it is dilated")
    covered = zip(site.shape, site.output_shape, params["window_strides"], strict=True)
    region = tuple(out * s if out * s <= size else size for size, out, s in covered)
    whole = np.array(prod(site.window))
    if not any(sum(padding) for padding in params["padding"]):
        return whole, region
    # With padding there are two conventions: the program divides by one number, padding counted,
    # or by a map of how many pixels each window has.
    divisor = _divisor(jaxpr, eqn)
    if divisor is None:
        raise Refused("it is padded, and the divisor of its sum cannot be determined")
    is_number = isinstance(divisor, Literal) or divisor.aval.shape == ()
    return (whole if is_number else _pixel_counts(eqn)), region


def _divisor(jaxpr: Any, eqn: Any) -> Any:
    """Returns the second operand of the division that is the only use of a sum, or None."""
    (total,) = eqn.outvars
    users = [other for other in jaxpr.eqns if any(v is total for v in other.invars)]
    if len(users) != 1 or users[0].primitive.name not in ("div", "mul"):
        return None
    first, second = users[0].invars
    if users[0].primitive.name == "div":
        return second if first is total else None
    factor = first if second is total else second
    return factor if isinstance(factor, Literal) or factor.aval.shape == () else None


def _pixel_counts(eqn: Any) -> np.ndarray:
    """Returns the number of pixels in each window, padding not counted."""
    params, shape = eqn.params, eqn.invars[0].aval.shape
    counts = np.ones((1,) * len(shape))
    for axis, size in enumerate(shape):
        low, _ = params["padding"][axis]
        starts = np.arange(eqn.outvars[0].aval.shape[axis]) * params["window_strides"][axis] - low
        stops = np.minimum(starts + params["window_dimensions"][axis], size)
        along = stops - np.maximum(starts, 0)
        counts = counts * along.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return counts


@rule("reshape")
def split(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """Remembers a reshape that may begin a pool: `x.reshape(n, h, 2, w, 2, c).mean((2, 4))`."""
    if not is_reshape_pool(eqn) or len(inputs) > 1:
        return None
    waiting = pointwise.reshape(run, eqn, inputs)
    if waiting is not None:
        return waiting
    x = run.settle(inputs[0], eqn)
    outputs = run.bind(eqn, [x])
    run.splits[id(outputs[0])] = (outputs[0], x)
    return outputs


@rule("reduce_sum", "reduce_max")
def pool_of_split(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """The second half of such a pool: the reduction of what a reshape has split."""
    value = inputs[0]
    if id(value) not in run.splits:
        return None
    _, x = run.splits[id(value)]
    windows = pooled_by_reshape(x.shape, value.shape, eqn.params["axes"])
    if windows is None or len(windows) == 1:
        return None
    is_average = eqn.primitive.name == "reduce_sum"
    strides, shape, output_shape = tuple(windows.values()), x.shape, eqn.outvars[0].aval.shape
    kind = "average pool" if is_average else "max pool"
    primitive = f"reshape, {eqn.primitive.name}"
    layer = run.layer(eqn, inputs)
    site = Site(layer, kind, primitive, shape, output_shape, strides, strides, None)
    roles = "".join("s" if i in windows else "n" if i == 0 else "c" for i in range(x.ndim))

    def antialiased() -> Array:
        if is_average:
            _check_average(run.options, site)
            sampler = run.sampler(eqn, site, shape, roles, x)
            extra = sampler.flops(output_shape) - prod(shape)
            run.record(eqn, site, done=_BLUR_FOR_MEAN, extra=extra)
            return on_channels_last(sampler, x, roles) * jnp.asarray(prod(strides), x.dtype)
        sizes, ones = [windows.get(i, 1) for i in range(x.ndim)], (1,) * x.ndim
        y = lax.reduce_window(x, _lowest(x.dtype), lax.max, sizes, ones, "VALID")
        sampler = run.sampler(eqn, site, y.shape, roles, x)
        extra = sampler.flops(output_shape) + prod(strides) * prod(y.shape) - prod(shape)
        run.record(eqn, site, done=_DENSE_MAX, extra=extra)
        return on_channels_last(sampler, y, roles)

    return run.attempt(eqn, site, antialiased, lambda: run.bind(eqn, [value]))


@rule("slice")
def strided_slice(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`x[:, ::2, ::2]` becomes a blur of the part that the slice covers."""
    site = describe(eqn, run.layer(eqn, inputs))
    if site is None:
        return None
    x, params = run.settle(inputs[0], eqn), eqn.params

    def antialiased() -> Array:
        _check_slice(run, eqn, x)
        covered = lax.slice(x, params["start_indices"], params["limit_indices"])
        strides = enumerate(params["strides"])
        roles = "".join("s" if s > 1 else "n" if i == 0 else "c" for i, s in strides)
        sampler = run.sampler(eqn, site, covered.shape, roles, x)
        run.record(eqn, site, done="blur", extra=sampler.flops(site.output_shape))
        return on_channels_last(sampler, covered, roles)

    return run.attempt(eqn, site, antialiased, lambda: run.bind(eqn, [x]))


def _check_slice(run: Interpreter, eqn: Any, x: Array) -> None:
    """Leaves alone what does not look like a subsampled image.

    Raises:
        Refused: the axes are not those of an image, or other slices keep what this one drops.
    """
    strides = eqn.params["strides"]
    axes = tuple(i for i, stride in enumerate(strides) if stride > 1)
    images = {(1, 2), (2, 3), (1, 2, 3), (2, 3, 4), (0, 1)}
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise Refused(f"{x.dtype} values have no mean")
    if axes not in images or max(axes) >= x.ndim or x.ndim < 3:
        raise Refused("its axes are not those of images, as far as a slice can tell")
    if len(run.sliced[eqn.invars[0], strides]) > 1:
        raise Refused(
            "other slices of the same array keep what it drops: together they rearrange, pool or "
            "filter it"
        )
