"""CPU kernels of convolutions, by their shape: the one place that chooses between them.

A gradient reads the cotangent, and a kernel's also the image, many times over and in another order
than the forward pass wrote them. XLA:CPU fuses a producer into its consumers, so the batch norm
after a convolution was differentiated once for each tap. Gradients here read arrays from memory.
"""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from aa_flax.ops.cpu.depthwise import Window, depthwise_conv
from aa_flax.ops.cpu.winograd import gains_by_winograd, winograd_conv
from aa_flax.ops.dispatch import Multilinear, Static, Transpose, Unfused
from aa_flax.runtime import uses_onednn

Shape = jax.ShapeDtypeStruct
_CACHE = 2**19  # values of a matrix that stays in a core's cache between two products
_BLOCK_CHANNELS = 16  # the fastest of 4 to 256 on ResNeXt's shapes, forward and backward


def convolution(
    definition: Static, window: Window, x: Shape, kernel: Shape, output_size: tuple[int, int]
) -> Multilinear:
    """Returns the CPU kernels of a convolution, forward and both gradients.

    `x` and `kernel` are shapes and types, `(N, H, W, C)` and `(kh, kw, C / groups, O)`.
    """
    if x.shape[-1] > kernel.shape[2]:
        return _grouped_conv(definition, window, x, kernel)
    if any(n < k for n, k in zip(output_size, window.taps, strict=True)):
        # 3x3 on 2x2 maps (the last stage on small images): XLA:CPU runs a scalar loop there.
        return with_unfused_transposes(Static(_matmul_conv, window=window), x, kernel)
    return dense_conv(definition, window, x, kernel)


def _grouped_conv(definition: Static, window: Window, x: Shape, kernel: Shape) -> Multilinear:
    """Returns the kernels of a convolution in groups: XLA's own take up to a thousand times longer.

    oneDNN's are the fastest, but XLA leaves it neither an image's gradient at a stride nor a
    kernel's gradient.
    """
    groups = x.shape[-1] // kernel.shape[2]
    if kernel.shape[2] == 1 and kernel.shape[3] == groups:
        kernels = depthwise_conv(window, (x.shape[1], x.shape[2]))
    else:
        blocks = Static(_block_diagonal_conv, definition=definition, groups=groups)
        kernels = with_unfused_transposes(blocks, x, kernel)
    if not uses_onednn() or x.dtype == jnp.float64:
        return kernels
    image, taps = kernels.transposes
    onednn = Static(_in_float32, definition=definition)
    if set(window.strides) == {1}:
        image = Unfused(Transpose(onednn, 0, x))
    return Multilinear(onednn, (image, taps))


def dense_conv(definition: Static, window: Window, x: Shape, kernel: Shape) -> Multilinear:
    """Returns the CPU kernels of a convolution without groups: see `convolution`."""
    half_by_onednn = uses_onednn() and x.dtype != jnp.float32  # which is twice as fast
    if gains_by_winograd(window, x, kernel) and not half_by_onednn:
        return winograd_conv(window)
    is_product = window.taps == (1, 1) and window.padding == ((0, 0), (0, 0))
    function = Static(_product, strides=window.strides) if is_product else definition
    image, taps = with_unfused_transposes(function, x, kernel).transposes
    if _gains_by_rows(window, x):
        taps = Unfused(Static(_kernel_gradient_by_rows, window=window))
    elif is_product:
        taps = Unfused(Static(_kernel_gradient_of_product, strides=window.strides))
    return Multilinear(definition if uses_onednn() else function, (image, taps))


def with_unfused_transposes(function: Static, x: Shape, kernel: Shape) -> Multilinear:
    """Returns a convolution with JAX's transposes, which read their inputs from memory."""
    transposes = (Transpose(function, i, shape) for i, shape in enumerate((x, kernel)))
    return Multilinear(function, tuple(map(Unfused, transposes)))


def _in_float32(x: Array, kernel: Array, definition: Static) -> Array:
    """Convolves in float32: oneDNN's grouped convolutions of half precision are slower."""
    return definition(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)


def _matmul_conv(x: Array, kernel: Array, window: Window) -> Array:
    """Multiplies every window as one row by the kernel: `(N h w, kh kw I) @ (kh kw I, O)`."""
    windows = jnp.concatenate(window.views(x), -1)
    return windows @ kernel.reshape(prod(kernel.shape[:-1]), kernel.shape[-1])


def _block_diagonal_conv(x: Array, kernel: Array, definition: Static, groups: int) -> Array:
    """Convolves a few groups at a time, densely, with a block-diagonal kernel."""
    dense = Static(definition.func, **{**definition.keywords, "feature_group_count": 1})
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
        outputs.append(dense(x[..., first * group_in : (first + size) * group_in], block))
    return jnp.concatenate(outputs, axis=-1)


def _product(x: Array, kernel: Array, strides: tuple[int, int]) -> Array:
    """Convolves with a kernel of one pixel: `(N h w, C) @ (C, O)`."""
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def _kernel_gradient_of_product(x: Array, g: Array, strides: tuple[int, int]) -> Array:
    # JAX's transpose computes the transposed matrix: three times slower where O is larger than C.
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.einsum("nhwi,nhwo->io", x, g)[None, None]


def _gains_by_rows(window: Window, x: Shape) -> bool:
    """Checks whether the kernel's gradient is faster by rows (measured on ResNet's and VGG's)."""
    sizes_are_known = all(isinstance(n, int) for n in x.shape[1:3])  # export may leave them open
    steps = {*window.strides, *window.dilation}
    least = 50 if window.taps == (1, 1) else 100
    return sizes_are_known and steps == {1} and x.shape[1] >= least and x.shape[3] >= 16


def _kernel_gradient_by_rows(x: Array, g: Array, window: Window) -> Array:
    """Sums one product a step: the windows of a few rows of all images, as a matrix, times `g`.

    The matrix stays in cache, where XLA's own kernel reads the image again for each tap.
    """
    wide = np.promote_types(g.dtype, jnp.float32)
    height, features = g.shape[1], prod(window.taps) * x.shape[-1]
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    valid = window._replace(padding=((0, 0), (0, 0)))
    wanted = max(1, _CACHE // (prod(g.shape) // height * (features + g.shape[-1]) // g.shape[-1]))
    rows = max(n for n in range(1, min(wanted, height) + 1) if height % n == 0)

    def add(total: Array, i: Array) -> tuple[Array, None]:
        read = lax.dynamic_slice_in_dim(x, i * rows, rows + window.taps[0] - 1, axis=1)
        columns = jnp.concatenate(valid.views(read), -1).astype(wide)
        g_rows = lax.dynamic_slice_in_dim(g, i * rows, rows, axis=1).astype(wide)
        return total + jnp.einsum("nhwi,nhwo->io", columns, g_rows), None

    total, _ = lax.scan(add, jnp.zeros((features, g.shape[-1]), wide), jnp.arange(height // rows))
    return total.reshape(*window.taps, x.shape[-1], g.shape[-1]).astype(g.dtype)
