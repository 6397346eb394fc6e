"""Layers that the nets share, computing what their torch namesakes compute, on NHWC arrays."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import prod, sqrt

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.depthwise import depthwise_conv

_circular = ContextVar("circular", default=False)


@contextmanager
def circular_padding() -> Iterator[None]:
    """Within it, convolutions, max pools and BlurPools see periodic images, whatever their padding.

    For analysis: a layer of stride s then gives maps of `n / s` pixels of images of n, and commutes
    with whole shifts by s. It acts while a function is traced, so trace it for this alone.
    """
    token = _circular.set(True)
    try:
        yield
    finally:
        _circular.reset(token)


def is_circular() -> bool:
    """Whether `circular_padding` is in force."""
    return _circular.get()


def _wrapped(x: Array, extents: Sequence[int], strides, padding) -> Array:
    """The image continued periodically, as far as windows of those extents need it."""
    widths = [
        (before, max(extent - stride - before, 0))
        for extent, stride, (before, _) in zip(extents, strides, padding, strict=True)
    ]
    return jnp.pad(x, [(0, 0), *widths, (0, 0)], mode="wrap")


kaiming_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """torch's default for weights and biases: uniform in +-1 / sqrt(fan_in)."""
    bound = 1 / sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with torch's running statistics.

    The batch is normalised by its biased variance; `var` runs after the unbiased one, as in torch
    (Flax runs after the biased one). Statistics are float32 whatever the compute type, and the
    variance is taken about the mean, which does not cancel at large means.

    Args:
        num_features: channels `C`.
        momentum: weight of the old running statistic (torch's `1 - momentum`).
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        rngs: nnx.Rngs,
    ):
        shape = (num_features,)
        self.scale = nnx.Param(scale_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape))
        self.mean = nnx.BatchStat(jnp.zeros(shape))
        self.var = nnx.BatchStat(jnp.ones(shape))
        self.momentum = momentum
        self.epsilon = epsilon
        self.use_running_average = False

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        dtype = x.dtype
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._batch_statistics(x)
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        return ((x - mean) * scale + self.bias[...]).astype(dtype)

    def _batch_statistics(self, x: Array) -> tuple[Array, Array]:
        count = prod(x.shape[:-1])
        if count < 2:
            raise ValueError(
                f"BatchNorm in training needs more than one value for each channel, got shape "
                f"{x.shape}; use a larger batch or image, or call model.eval()"
            )
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        var = jnp.square(x - mean).mean(axes)
        keep = self.momentum
        self.mean[...] = keep * self.mean[...] + (1 - keep) * lax.stop_gradient(mean)
        unbiased = lax.stop_gradient(var) * (count / (count - 1))
        self.var[...] = keep * self.var[...] + (1 - keep) * unbiased
        return mean, var


def conv2d(
    in_features: int,
    out_features: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: nnx.Initializer = kaiming_normal_fan_out,
    bias_init: nnx.Initializer = nnx.initializers.zeros,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square 2-D convolution with torch's arguments: `padding` pixels on every side."""
    return nnx.Conv(
        in_features,
        out_features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((padding, padding), (padding, padding)),
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        rngs=rngs,
    )


def linear(
    in_features: int,
    out_features: int,
    *,
    kernel_init: nnx.Initializer | None = None,
    bias_init: nnx.Initializer | None = None,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer; its initialisation is torch's default unless given."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=kernel_init or torch_uniform(in_features),
        bias_init=bias_init or torch_uniform(in_features),
        dtype=dtype,
        rngs=rngs,
    )


def max_pool(
    x: Float[Array, "N *spatial C"], window: int, *, stride: int, padding: int = 0
) -> Float[Array, "N *out C"]:
    """Maximum over `window`-sided cubes of the spatial axes, `padding` pixels never winning.

    The window is separable: a running maximum along each axis in turn, last axis first. Among
    equal values the first in reading order takes the whole gradient, as in torch; NaN propagates.
    """
    dims = x.ndim - 2
    if is_circular():
        x = _wrapped(x, [window] * dims, [stride] * dims, [(padding, padding)] * dims)
    elif padding:
        widths = [(0, 0), *[(padding, padding)] * dims, (0, 0)]
        x = jnp.pad(x, widths, constant_values=-jnp.inf)
    if min(x.shape[1:-1]) < window:
        raise ValueError(
            f"a map of spatial size {x.shape[1:-1]} (padding included) is too small for max "
            f"pooling: window {window} needs at least {window} pixels; use a larger image"
        )
    for axis in reversed(range(1, x.ndim - 1)):
        stop = (x.shape[axis] - window) // stride * stride + 1
        shifted = [lax.slice_in_dim(x, i, i + stop, stride, axis=axis) for i in range(window)]
        x = shifted[0]
        for later in shifted[1:]:
            x = jnp.where((x >= later) | jnp.isnan(x), x, later)
    return x


def avg_pool(x: Float[Array, "N H W C"], window: int) -> Float[Array, "N h w C"]:
    """Mean over adjoining squares of `window` pixels; what is left at the far edge is dropped."""
    batch, height, width, channels = x.shape
    h, w = height // window, width // window
    if h == 0 or w == 0:
        raise ValueError(
            f"average pool with window {window} needs at least {window} pixels on each axis, got "
            f"spatial size {(height, width)}; use a larger image"
        )
    x = x[:, : h * window, : w * window].reshape(batch, h, window, w, window, channels)
    return x.mean((2, 4))


def adaptive_avg_pool(x: Float[Array, "N H W C"], size: int) -> Float[Array, "N size size C"]:
    """Means over `size` bins an axis, as many as an image has pixels or not.

    Of n pixels bin i covers floor(i * n / size) to ceil((i + 1) * n / size). Along an axis that is
    a small matrix times the signal, and so is its gradient.
    """
    dtype = x.dtype
    y = x.astype(jnp.promote_types(dtype, jnp.float32))
    for axis, product in ((1, "oh,nhwc->nowc"), (2, "ow,nhwc->nhoc")):
        if x.shape[axis] == 0:
            raise ValueError(f"average pool of an empty image, spatial size {x.shape[1:3]}")
        if x.shape[axis] != size:
            bins = jnp.asarray(_bins(x.shape[axis], size), y.dtype)
            y = jnp.einsum(product, bins, y, precision=lax.Precision.HIGHEST)
    return y.astype(dtype)


def _bins(pixels: int, size: int) -> np.ndarray:
    """The matrix `(size, pixels)` that takes a signal to the means of its bins."""
    bins = np.zeros((size, pixels))
    for i in range(size):
        start, stop = i * pixels // size, -(-(i + 1) * pixels // size)
        bins[i, start:stop] = 1 / (stop - start)
    return bins


def conv_general_dilated(
    x: Array, kernel: Array, strides, padding, *, feature_group_count: int, **options
) -> Array:
    """`lax.conv_general_dilated`, NHWC by HWIO, without XLA's two slow paths on CPU.

    Grouped convolutions, and above all their gradients, run one to three orders slower there than
    dense ones: groups are taken a few at a time as dense convolutions with a block-diagonal
    kernel, and groups of one channel as a sum of shifted products. Convolutions whose output is
    narrower than their kernel (3x3 on 2x2 maps, so the last stage of a net on small images) fall
    into a scalar loop: they become a matrix product.
    """
    if is_circular():
        dilated = zip(kernel.shape, options["rhs_dilation"], strict=False)
        x = _wrapped(x, [(k - 1) * d + 1 for k, d in dilated], strides, padding)
        padding = ((0, 0), (0, 0))
    dense = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    native = partial(dense, feature_group_count=feature_group_count)
    output = jax.eval_shape(native, x, kernel).shape
    if 0 in output[1:3]:
        raise ValueError(
            f"convolution with a {kernel.shape[0]}x{kernel.shape[1]} kernel needs at least as many "
            f"pixels, got spatial size {x.shape[1:3]} and padding {padding}; use a larger image"
        )
    dilation = options["rhs_dilation"]
    if kernel.shape[2] == 1 and 1 < kernel.shape[3] == feature_group_count:
        on_cpu = partial(depthwise_conv, strides=strides, padding=padding, dilation=dilation)
    elif feature_group_count > 1:
        on_cpu = partial(_block_diagonal_conv, groups=feature_group_count, conv=dense)
    elif any(n < k for n, k in zip(output[1:3], kernel.shape[:2], strict=True)):
        on_cpu = partial(_matmul_conv, strides=strides, padding=padding, dilation=dilation)
    else:
        return native(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=native)


def _matmul_conv(x: Array, kernel: Array, strides, padding, dilation) -> Array:
    """Every window as one row, times the kernel as a matrix: `(N h w, kh kw I) @ (kh kw I, O)`."""
    out = kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (
        [slice(i * d, n - (k - 1 - i) * d, s) for i in range(k)]
        for n, k, s, d in zip(x.shape[1:3], kernel.shape, strides, dilation, strict=False)
    )
    windows = jnp.concatenate([x[:, row, column] for row in rows for column in columns], -1)
    return windows @ kernel.reshape(-1, out)


_BLOCK_CHANNELS = 16  # the fastest of 4 to 256 on ResNeXt's shapes, forward and backward


def _block_diagonal_conv(x: Array, kernel: Array, groups: int, conv: Callable) -> Array:
    height, width, group_in, out = kernel.shape
    group_out = out // groups
    chunk = max(1, _BLOCK_CHANNELS // group_in)
    outputs = []
    for first in range(0, groups, chunk):
        size = min(chunk, groups - first)
        part = kernel[..., first * group_out : (first + size) * group_out]
        part = part.reshape(height, width, group_in, size, group_out)
        block = jnp.einsum("hwigo,gf->hwfigo", part, jnp.eye(size, dtype=kernel.dtype))
        block = block.reshape(height, width, size * group_in, size * group_out)
        outputs.append(conv(x[..., first * group_in : (first + size) * group_in], block))
    return jnp.concatenate(outputs, axis=-1)
