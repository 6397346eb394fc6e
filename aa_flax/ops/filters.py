"""Other low-pass filters than a blur: given taps, Gaussian, Kaiser, and the ideal filter.

Last, the derivative of band-limited maps.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import pi, sqrt

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aa_flax.errors import InputError, integer, real
from aa_flax.ops.blur import Taps, check_map, filter_geometry, one_for_each_axis, padding_widths
from aa_flax.ops.lowpass import Padding, subsampled


def filter_pool(
    x: Float[Array, "N *spatial C"],
    taps: Sequence[Taps],
    stride: int | Sequence[int],
    padding: Padding = "reflect",
    *,
    pad_widths: Sequence[tuple[int, int]] | None = None,
) -> Float[Array, "N *out C"]:
    """Filters every channel by given taps and keeps every `stride`-th value.

    Args:
        x, stride, padding: as in `blur_pool`.
        taps: the filter of each axis.
        pad_widths: pixels added before and after each axis. Default: as `blur_pool`.
    """
    check_map(x)
    sizes = x.shape[1:-1]
    if len(taps) != len(sizes):
        raise InputError(f"taps of {len(taps)} axes were given for {len(sizes)} spatial axes")
    widths = pad_widths or [padding_widths(len(filter)) for filter in taps]
    return subsampled(x, filter_geometry(sizes, map(tuple, taps), stride, padding, widths))


def gaussian_taps(filter_size: int, sigma: float | None = None) -> Taps:
    """Returns a sampled Gaussian, normalised to a sum of 1.

    The standard deviation `sigma` is in pixels; default 0.3 ((k - 1) / 2 - 1) + 0.8 for k taps,
    that of OpenCV's `getGaussianKernel`.
    """
    k = integer("filter_size", filter_size, least=1)
    sigma = 0.3 * ((k - 1) / 2 - 1) + 0.8 if sigma is None else real("sigma", sigma)
    if sigma <= 0:
        raise InputError(f"sigma must be above 0, got {sigma}")
    return _normalised(np.exp(-(_positions(k) ** 2) / (2 * sigma**2)))


def kaiser_taps(filter_size: int, stride: int, beta: float | None = None) -> Taps:
    """Returns a sinc with its cut-off at the new Nyquist frequency, under a Kaiser window.

    The cut-off is 1 / (2 stride) cycles a pixel. `beta` is the shape of the window, 0 (a box) or
    more. Default: Kaiser's formula for the transition band of Karras et al. (NeurIPS 2021, Appendix
    C.1): sqrt(2) - 1 times the sampling rate of the subsampled map.

    Source: Kaiser, 1974; Oppenheim and Schafer, Discrete-Time Signal Processing, Sec. 7.5.3.
    """
    k = integer("filter_size", filter_size, least=1)
    stride = integer("stride", stride, least=1)
    beta = _kaiser_beta(k, stride) if beta is None else real("beta", beta, least=0)
    return _normalised(np.sinc(_positions(k) / stride) * np.kaiser(k, beta))


def _kaiser_beta(taps: int, stride: int) -> float:
    """Returns the shape of the window by the attenuation that so many taps reach."""
    transition = 2 * pi * (sqrt(2) - 1) / stride
    attenuation = 2.285 * (taps - 1) * transition + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    above = max(attenuation - 21, 0)
    return 0.5842 * above**0.4 + 0.07886 * above


def _positions(taps: int) -> np.ndarray:
    """Returns the positions of the taps, in pixels from the centre."""
    return np.arange(taps) - (taps - 1) / 2


def _normalised(taps: np.ndarray) -> Taps:
    return tuple((taps / taps.sum()).tolist())


def ideal_pool(
    x: Float[Array, "N *spatial C"], stride: int | Sequence[int] = 2
) -> Float[Array, "N *out C"]:
    """Crops the spectrum of every channel to the frequencies that the coarser grid represents.

    The Fourier transform of each axis of n pixels, taken as periodic, is cropped to the frequencies
    below m / 2 cycles, m = ceil(n / stride), and transformed back at m equidistant positions. A
    signal without higher frequencies is sampled exactly, and all shifts commute, those by fractions
    of a pixel too. Cropping a spectrum is linear, so on each axis this is one m x n matrix.

    Args are those of `blur_pool`.

    Source: Grabinski et al., FrequencyLowCut Pooling, ECCV 2022; Michaeli et al., Alias-Free
    Convnets, CVPR 2023, Sec. 3.
    """
    check_map(x)
    strides = one_for_each_axis("stride", stride, x.ndim - 2)
    y = x.astype(np.promote_types(x.dtype, jnp.float32))
    for axis, step in enumerate(strides, 1):
        if step > 1:
            y = along(y, axis, ideal_matrix(y.shape[axis], step))
    return y.astype(x.dtype)


def along(x: Array, axis: int, matrix: Float[np.ndarray, "m n"]) -> Array:
    """Multiplies every line of `x` along an axis by a matrix."""
    weights = jnp.asarray(matrix, x.dtype)
    product = jnp.tensordot(weights, x, (1, axis), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis)


@lru_cache(maxsize=256)
def ideal_matrix(size: int, stride: int) -> np.ndarray:
    """Returns `(m, n)`: the sum over kept frequencies f of cos(2 pi f (i / m - j / n)), over n."""
    length = -(-size // stride)
    distance = np.arange(length)[:, None] / length - np.arange(size) / size
    frequencies = np.arange(1, (length - 1) // 2 + 1)
    waves = np.cos(2 * np.pi * frequencies[:, None, None] * distance)
    return (1 + 2 * waves.sum(0)) / size


def derivative_matrix(size: int) -> Float[np.ndarray, "size size"]:
    """Returns the matrix to the derivative per pixel of the polynomial through periodic values."""
    factors = 2j * np.pi * np.arange(size // 2 + 1) / size
    if size % 2 == 0:
        factors[-1] = 0
    slope_of_impulse = np.fft.irfft(factors, size)
    position = np.arange(size)
    return slope_of_impulse[(position[:, None] - position) % size]
