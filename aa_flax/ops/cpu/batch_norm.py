"""Normalisation of a batch by its statistics, with its derivative written as an affine map."""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from aa_flax.ops import dispatch
from aa_flax.ops.cpu.depthwise import sums_over_batch
from aa_flax.ops.dispatch import Multilinear, Static

Normalised = tuple[Array, Array, Array]  # the batch, and its mean and biased variance, `(C,)` each


def batch_norm(
    x: Float[Array, "*batch C"], scale: Float[Array, " C"], bias: Array, epsilon: float
) -> Normalised:
    """Returns `(x - mean) / sqrt(var + epsilon) * scale + bias`, over all axes but the last.

    The variance is biased, and taken about the mean, which does not cancel at large means. Both are
    in the type of `x`. The derivative is that of Ioffe and Szegedy 2015, Sec. 3, with its terms
    collected: for `d = x - mean`, a tangent or cotangent `t` becomes `a t + c1 d + c0`, where the
    coefficients of each channel follow from two sums, of `t` and of `t d`. Automatic
    differentiation, used within `ops.definitions()`, takes several more passes over memory.
    """
    forced = dispatch.definitions_are_forced()
    return (_by_definition if forced else _affine)(x, scale, bias, epsilon)


def along(values: Float[Array, " C"], x: Array) -> Array:
    """Returns one value for each channel, shaped to broadcast against `x`."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _by_definition(x: Array, scale: Array, bias: Array, epsilon: float) -> Normalised:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    centred = x - along(mean, x)
    var = jnp.square(centred).mean(axes)
    return centred * along(scale * lax.rsqrt(var + epsilon), x) + along(bias, x), mean, var


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _affine(x: Array, scale: Array, bias: Array, epsilon: float) -> Normalised:
    mean = x.mean(tuple(range(x.ndim - 1)))
    centred = x - along(mean, x)
    rest, squares = _sums(centred, centred) / prod(x.shape[:-1])
    var = squares - jnp.square(rest)  # `rest` is the rounding error of the mean
    return centred * along(scale * lax.rsqrt(var + epsilon), x) + along(bias, x), mean, var


@_affine.defjvp
def _derivative(epsilon: float, primals, tangents) -> tuple[Normalised, Normalised]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    y, mean, var = _affine(x, scale, bias, epsilon)
    centred = x - along(mean, x)
    dmean, half_dvar = _sums(dx, centred) / prod(x.shape[:-1])
    inverse = lax.rsqrt(var + epsilon)
    a = scale * inverse
    c1 = dscale * inverse - a * inverse**2 * half_dvar
    c0 = dbias - a * dmean
    dy = dx * along(a, x) + _spread(centred, jnp.stack([c0, c1]))
    return (y, mean, var), (dy, dmean, 2 * half_dvar)


def _spread(centred: Array, coefficients: Float[Array, "2 C"]) -> Array:
    """Returns `c0 + c1 d`, linear in the two coefficients of each channel and in `(1, d)`."""
    basis = jnp.stack([jnp.ones_like(centred), centred])
    sums = Static(_sums_over_batch_first, in_one_pass=dispatch.on_one_device())
    cpu = Multilinear(Static(_combination), (Static(_outer), sums))
    return dispatch.apply(Multilinear(Static(_combination)), {"cpu": cpu}, basis, coefficients)


def _sums(t: Array, centred: Array) -> Float[Array, "2 C"]:
    """Returns for each channel the sums of `t` and of `t d`: the transpose of `_spread`."""
    shape = jax.ShapeDtypeStruct((2, t.shape[-1]), t.dtype)
    return jax.linear_transpose(partial(_spread, centred), shape)(t)[0]


def _combination(basis: Array, coefficients: Array) -> Array:
    ones, centred = basis
    return ones * along(coefficients[0], ones) + centred * along(coefficients[1], ones)


def _outer(coefficients: Array, g: Array) -> Array:
    return jnp.stack([g * along(c, g) for c in coefficients])


def _sums_over_batch_first(basis: Array, g: Array, in_one_pass: bool) -> Array:
    """Returns both sums, over the batch and then over the image.

    XLA:CPU's sum over all axes at once takes four times as long, and writes `basis * g` to memory.
    """
    shape = (g.shape[0], prod(g.shape[1:-1]), g.shape[-1])
    products = [(each * g).reshape(shape) for each in basis]
    if not in_one_pass:  # the image first: devices then exchange one number for each channel
        return jnp.stack([each.sum(1).sum(0) for each in products])
    return jnp.stack([each.sum(0) for each in sums_over_batch(products)])
