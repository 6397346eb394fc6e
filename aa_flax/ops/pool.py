"""Max and average pooling of channels-last arrays, equal to torch's functions of the same name."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.ops import dispatch
from aa_flax.ops.padding import is_circular, wrapped


def max_pool(
    x: Float[Array, "N *spatial C"], window: int, *, stride: int, padding: int = 0
) -> Float[Array, "N *out C"]:
    """Returns the maximum over windows of `window` pixels on each spatial axis.

    Pixels of padding are never the maximum. Among equal values the first in reading order receives
    the whole gradient, as in torch; NaN propagates. Within `ops.definitions()`, and where the
    process computes on TPU, it is `lax.reduce_window`; otherwise a running maximum along each axis,
    last axis first: several times faster on CPU, and without a scatter in its gradient on GPU.

    Raises:
        InputError: the map, padding included, is smaller than the window.
    """
    dims = x.ndim - 2
    if is_circular():
        x = wrapped(x, [window] * dims, [stride] * dims, [(padding, padding)] * dims)
        padding = 0
    padded = tuple(size + 2 * padding for size in x.shape[1:-1])
    if any(size < window for size in padded):  # one by one: export may not know their order
        raise InputError(
            f"a map of spatial size {padded} (padding included) is too small for max "
            f"pooling: window {window} needs at least {window} pixels; use a larger image"
        )
    widths = [(0, 0), *[(padding, padding)] * dims, (0, 0)]
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    if dispatch.definitions_are_forced() or jax.default_backend() == "tpu":
        shape, strides = ((1, *[n] * dims, 1) for n in (window, stride))
        return lax.reduce_window(x, np.array(lowest, x.dtype), lax.max, shape, strides, widths)
    if padding:
        x = jnp.pad(x, widths, constant_values=lowest)
    for axis in reversed(range(1, x.ndim - 1)):
        stop = (x.shape[axis] - window) // stride * stride + 1
        shifted = [lax.slice_in_dim(x, i, i + stop, stride, axis=axis) for i in range(window)]
        x = shifted[0]
        for later in shifted[1:]:
            x = jnp.where((x >= later) | jnp.isnan(x), x, later)
    return x


def avg_pool(x: Float[Array, "N H W C"], window: int) -> Float[Array, "N h w C"]:
    """Returns the means of adjacent `window` x `window` squares, dropping the rest.

    Raises:
        InputError: an axis is shorter than the window.
    """
    batch, height, width, channels = x.shape
    h, w = height // window, width // window
    if h == 0 or w == 0:
        raise InputError(
            f"average pool with window {window} needs at least {window} pixels on each axis, got "
            f"spatial size {(height, width)}; use a larger image"
        )
    x = x[:, : h * window, : w * window].reshape(batch, h, window, w, window, channels)
    return x.mean((2, 4))


def adaptive_avg_pool(x: Float[Array, "N H W C"], size: int) -> Float[Array, "N size size C"]:
    """Returns the means of `size` bins on each axis, which overlap where the sizes need it.

    Of n pixels bin i covers floor(i * n / size) to ceil((i + 1) * n / size). Along an axis that is
    a small matrix times the signal, and so is its gradient.

    Raises:
        InputError: an empty image, or one whose size export leaves open.
    """
    y = x.astype(np.promote_types(x.dtype, jnp.float32))
    for axis, product in ((1, "oh,nhwc->nowc"), (2, "ow,nhwc->nhoc")):
        if not isinstance(x.shape[axis], int):
            raise InputError(
                f"average pool into {size}x{size} bins needs height and width in numbers, got "
                f"{x.shape[1:3]}; export for images of one size"
            )
        if x.shape[axis] == 0:
            raise InputError(
                f"average pool of an empty image, spatial size {x.shape[1:3]}; use a larger image"
            )
        if x.shape[axis] != size:
            bins = jnp.asarray(_bins(x.shape[axis], size), y.dtype)
            y = jnp.einsum(product, bins, y, precision=lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def _bins(pixels: int, size: int) -> np.ndarray:
    """Returns the matrix `(size, pixels)` that maps a signal to the means of its bins."""
    i, pixel = np.arange(size)[:, None], np.arange(pixels)
    inside = (pixel >= i * pixels // size) & (pixel < -(-(i + 1) * pixels // size))
    return inside / inside.sum(1, keepdims=True)
