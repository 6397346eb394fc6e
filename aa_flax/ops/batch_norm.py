"""Normalisation of a batch by its own statistics, with a derivative in affine form."""

from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from aa_flax.ops import forms
from aa_flax.ops.forms import Multilinear, on_one_device, static


class Normalised(NamedTuple):
    """What `batch_norm` gives: the batch, and the mean and biased variance it had, `(C,)` each."""

    y: Array
    mean: Array
    var: Array


def batch_norm(
    x: Float[Array, "*batch C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    epsilon: float,
) -> Normalised:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias` over all axes but the last.

    The variance is biased, and taken about the mean, which does not cancel at large means.

    The derivative is written out (Ioffe and Szegedy 2015, Sec. 3, its terms collected): with
    `d = x - mean`, a direction `t` gives `a t + c1 d + c0`, and so does a cotangent, where the
    numbers `a`, `c1`, `c0` of each channel follow from two sums, of `t` and of `t d`. That is what
    automatic differentiation computes in several passes more; it is so on every platform. Within
    `ops.definitions()` it is automatic differentiation's.

    Args:
        x: floating point, in the type that statistics are computed in.
    """
    return (_by_definition if forms.are_forced() else _affine)(x, scale, bias, epsilon)


def along(values: Float[Array, " C"], x: Array) -> Array:
    """A value for each channel, with the axes of `x`."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _by_definition(x: Array, scale: Array, bias: Array, epsilon: float) -> Normalised:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    centred = x - along(mean, x)
    var = jnp.square(centred).mean(axes)
    y = centred * along(scale * lax.rsqrt(var + epsilon), x) + along(bias, x)
    return Normalised(y, mean, var)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _affine(x: Array, scale: Array, bias: Array, epsilon: float) -> Normalised:
    mean = x.mean(tuple(range(x.ndim - 1)))
    centred = x - along(mean, x)
    rest, squares = _sums(centred, centred) / prod(x.shape[:-1])
    var = squares - jnp.square(rest)  # `rest` is what rounding has left of the mean
    y = centred * along(scale * lax.rsqrt(var + epsilon), x) + along(bias, x)
    return Normalised(y, mean, var)


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
    return Normalised(y, mean, var), Normalised(dy, dmean, 2 * half_dvar)


def _spread(centred: Array, coefficients: Float[Array, "2 C"]) -> Array:
    """`c0 + c1 d` for the two numbers of each channel: linear in them, and in `(1, d)`."""
    basis = jnp.stack([jnp.ones_like(centred), centred])
    sums = static(_sums_over_batch_first, at_once=on_one_device())
    cpu = Multilinear(static(_combination), (static(_outer), sums))
    return forms.apply(Multilinear(static(_combination)), cpu, basis, coefficients)


def _sums(t: Array, centred: Array) -> Float[Array, "2 C"]:
    """For each channel the sums of `t` and of `t d`: the transpose of `_spread`."""
    shape = jax.ShapeDtypeStruct((2, t.shape[-1]), t.dtype)
    return jax.linear_transpose(partial(_spread, centred), shape)(t)[0]


def _combination(basis: Array, coefficients: Array) -> Array:
    ones, centred = basis
    return ones * along(coefficients[0], ones) + centred * along(coefficients[1], ones)


def _outer(coefficients: Array, g: Array) -> Array:
    return jnp.stack([g * along(c, g) for c in coefficients])


def _sums_over_batch_first(basis: Array, g: Array, at_once: bool) -> Array:
    """Both sums over the batch, `at_once` in one pass, as large as an image; then over the image.

    XLA's own sums over all axes at once take four times as long on CPU, and want `basis * g`
    written to memory.
    """
    shape = (g.shape[0], prod(g.shape[1:-1]), g.shape[-1])
    products = [(each * g).reshape(shape) for each in basis]
    if not at_once:  # image by image first: what devices send one another is a number a channel
        return jnp.stack([each.sum(1).sum(0) for each in products])
    zeros = [jnp.zeros((), g.dtype) for _ in products]
    sums = lax.reduce(products, zeros, lambda a, b: jax.tree.map(jnp.add, a, b), (0,))
    return jnp.stack([each.sum(0) for each in sums])
