"""The ideal low-pass filter: nothing above the new Nyquist frequency, all below as it was."""

from collections.abc import Sequence
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aa_flax.ops.blur import check_map, one_for_each_axis


def ideal_pool(
    x: Float[Array, "N *spatial C"], stride: int | Sequence[int] = 2
) -> Float[Array, "N *out C"]:
    """Keeps the frequencies that the sparser grid can hold, and samples there.

    The Fourier transform of each axis of n pixels, taken as periodic, is cropped to the frequencies
    below m / 2 cycles, m = ceil(n / stride), and transformed back at m equidistant places. What is
    limited to these frequencies already is sampled exactly; every shift commutes, by parts of a
    pixel, too. Cropping a spectrum is linear, so on each axis all this is one m x n matrix.

    Args:
        x: with one to three spatial axes, channels last, floating point.
        stride: subsampling factor, 1 or more; one number, or one for each axis.

    Returns:
        The same type as `x`; each spatial axis has `ceil(n / stride)` values, n / m pixels apart.

    Raises:
        InputError: a wrong rank, type or stride.

    Source: Grabinski et al., FrequencyLowCut Pooling, ECCV 2022; Michaeli et al., Alias-Free
    Convnets, CVPR 2023, Sec. 3.
    """
    check_map(x)
    strides = one_for_each_axis("stride", stride, x.ndim - 2)
    y = x.astype(np.promote_types(x.dtype, jnp.float32))
    for axis, step in enumerate(strides, 1):
        if step > 1:
            matrix = jnp.asarray(_matrix(y.shape[axis], step), y.dtype)
            product = jnp.tensordot(matrix, y, (1, axis), precision=lax.Precision.HIGHEST)
            y = jnp.moveaxis(product, 0, axis)
    return y.astype(x.dtype)


@lru_cache(maxsize=256)
def _matrix(size: int, stride: int) -> np.ndarray:
    """`(m, n)`: the sum over the kept frequencies f of cos(2 pi f (i / m - j / n)), over n."""
    length = -(-size // stride)
    distance = np.arange(length)[:, None] / length - np.arange(size) / size
    frequencies = np.arange(1, (length - 1) // 2 + 1)
    waves = np.cos(2 * np.pi * frequencies[:, None, None] * distance)
    return (1 + 2 * waves.sum(0)) / size
