"""Normalisation of a batch by its own statistics, with a derivative in affine form."""

from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from aa_flax.ops import forms


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
    `d = x - mean`, a direction `t` gives `a t + c2 d + c0`, and a cotangent `g` the same, where the
    numbers `a`, `c2`, `c0` of each channel follow from two sums, of `t` and of `t d`. It is the same
    sum as automatic differentiation's, on every platform, in two passes over the array for its six.
    Within `ops.definitions()` it is automatic differentiation's.

    Args:
        x: floating point, in the type that statistics are computed in.
    """
    return (_normalise if forms.are_forced() else _affine)(x, scale, bias, epsilon)


def along(values: Float[Array, " C"], x: Array) -> Array:
    """A value for each channel, with the axes of `x`."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _normalise(x: Array, scale: Array, bias: Array, epsilon: float) -> Normalised:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    centred = x - along(mean, x)
    var = jnp.square(centred).mean(axes)
    y = centred * along(scale * lax.rsqrt(var + epsilon), x) + along(bias, x)
    return Normalised(y, mean, var)


_affine = jax.custom_jvp(_normalise, nondiff_argnums=(3,))


@_affine.defjvp
def _derivative(epsilon: float, primals, tangents) -> tuple[Normalised, Normalised]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    y, mean, var = _affine(x, scale, bias, epsilon)
    axes, count = tuple(range(x.ndim - 1)), prod(x.shape[:-1])
    centred = x - along(mean, x)
    dmean = dx.sum(axes) / count
    dvar = (dx * centred).sum(axes) * (2 / count)
    inverse = lax.rsqrt(var + epsilon)
    a = scale * inverse
    c2 = dscale * inverse - a * inverse**2 * dvar / 2
    c0 = dbias - a * dmean
    dy = dx * along(a, x) + centred * along(c2, x) + along(c0, x)
    return Normalised(y, mean, var), Normalised(dy, dmean, dvar)
