"""Shifts by fractions of a pixel, without changing what an image contains.

An image of N pixels an axis is taken as one period of the trigonometric polynomial of lowest
frequencies through its values; a shift multiplies frequency f by exp(-2 pi i f d / N). At the
Nyquist frequency of an even N, where +N/2 and -N/2 are the same samples, both get half of the
amplitude, so that frequency is multiplied by cos(pi d): the result stays real, whole shifts are
exact rolls, and a half-pixel shift removes that one frequency.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def shift_band_limited(
    x: Float[Array, "N H W C"], shifts: Float[Array, "N 2"]
) -> Float[Array, "N H W C"]:
    """Each image moved down and right by its own, fractional number of pixels, periodically."""
    down, right = (shift_matrices(n, shifts[:, i]) for i, n in enumerate(x.shape[1:3]))
    x = jnp.einsum("nij,njwc->niwc", down, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("nij,nhjc->nhic", right, x, precision=lax.Precision.HIGHEST)


def shift_matrices(size: int, shifts: Float[Array, " N"]) -> Float[Array, "N size size"]:
    """For each shift the matrix that moves a periodic signal of `size` values by it.

    A product with these, unlike an FFT of the images, stays on the device that holds an image.
    """
    turns = jnp.outer(shifts, jnp.arange(size // 2 + 1, dtype=shifts.dtype)) / size
    factors = jnp.exp(lax.complex(jnp.zeros_like(turns), -2 * jnp.pi * turns))
    if size % 2 == 0:
        factors = factors.at[:, -1].set(jnp.cos(jnp.pi * shifts).astype(factors.dtype))
    moved_impulse = jnp.fft.irfft(factors, size)
    place = jnp.arange(size)
    return moved_impulse[:, (place[:, None] - place) % size]
