"""Polyphase components: the `stride ** axes` ways to keep every `stride`-th position.

Phase p of an image (for a square stride s, p = s i + j) has the positions `[i::s, j::s]`, which are
`ceil(N / stride)` on an axis. Where the stride does not divide the size, the border is replicated
(within `circular_padding`, the image is continued periodically).
"""

from collections.abc import Sequence
from functools import reduce
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aa_flax.errors import InputError
from aa_flax.ops.blur import blur_pool, check_map, one_for_each_axis
from aa_flax.ops.lowpass import Padding
from aa_flax.ops.padding import is_circular

Stride = int | Sequence[int]
Choice = Int[Array, " N"] | Float[Array, "N phases"]  # a phase, or weights, for each image


def polyphase(x: Float[Array, "N *spatial C"], stride: Stride) -> Float[Array, "N phases *out C"]:
    """Returns all phases of each image."""
    split, strides = _split(x, stride)
    dims = len(strides)
    inner = [2 + 2 * i for i in range(dims)]
    outer = [1 + 2 * i for i in range(dims)]
    phases = split.transpose(0, *inner, *outer, split.ndim - 1)
    return phases.reshape(x.shape[0], prod(strides), *phases.shape[1 + dims :])


def take_phase(
    x: Float[Array, "N *spatial C"], phase: Int[Array, " N"], stride: Stride
) -> Float[Array, "N *out C"]:
    """Returns one phase of each image."""
    y, strides = _split(x, stride)
    for axis, offset in enumerate(jnp.unravel_index(phase, strides), 1):
        y = _select(y, offset, axis + 1)  # each step takes an axis away
    return y


def mix_phases(
    x: Float[Array, "N *spatial C"], weights: Float[Array, "N phases"], stride: Stride
) -> Float[Array, "N *out C"]:
    """Returns the weighted sum of each image's phases."""
    y, strides = _split(x, stride)
    terms = []
    for p, offsets in enumerate(product(*map(range, strides))):
        index = [slice(None)] + [i for offset in offsets for i in (slice(None), offset)]
        phase = y[tuple(index)]
        weight = weights[:, p].reshape(-1, *[1] * (phase.ndim - 1))
        terms.append(phase * weight.astype(x.dtype))
    return reduce(jnp.add, terms)


def put_phase(
    y: Float[Array, "N *out C"],
    phase: Choice,
    stride: Stride,
    size: Sequence[int],
) -> Float[Array, "N *spatial C"]:
    """Puts values back at their phase, zeros elsewhere: the adjoint of `take_phase`.

    Args:
        phase: the phases that the values were taken from, or the weights they were mixed with.
        size: pixels of the result on each axis; values beyond them are dropped.
    """
    strides = one_for_each_axis("stride", stride, y.ndim - 2)
    weights = phase
    if not jnp.issubdtype(phase.dtype, jnp.floating):
        weights = jax.nn.one_hot(phase, prod(strides), dtype=y.dtype)
    weights = weights.astype(y.dtype)
    # (N, 1, s, 1, s, 1) times (N, h, 1, w, 1, C)
    shape = [n for s in strides for n in (1, s)]
    spread = y.reshape(y.shape[0], *[n for m in y.shape[1:-1] for n in (m, 1)], y.shape[-1])
    x = spread * weights.reshape(y.shape[0], *shape, 1)
    full = [m * s for m, s in zip(y.shape[1:-1], strides, strict=True)]
    x = x.reshape(y.shape[0], *full, y.shape[-1])
    return x[:, *(slice(n) for n in size)]


def upsample_phase(
    y: Float[Array, "N *out C"],
    choice: Choice,
    stride: Stride = 2,
    filter_size: int | Sequence[int] = 1,
    padding: Padding = "reflect",
    *,
    size: int | Sequence[int] | None = None,
) -> Float[Array, "N *spatial C"]:
    """Upsamples by putting values back at the phase that a pool kept, then filters.

    An encoder and a decoder whose pools and upsamplings share their choices are equivariant to
    every shift of a periodic image.

    Args:
        y: with one to three spatial axes, channels last, floating point.
        choice: that of the pool: numbers of phases, or the weights it mixed them with.
        stride: that of the pool.
        filter_size, padding: of a binomial filter after it, as in `blur_pool`, with the stride of
            each axis as gain, so that the mean is preserved; 1: no filter and no gain.
        size: pixels of the result, one number or one for each axis. Default: `stride` times those
            of `y`.

    Returns:
        The same type as `y`, of spatial size `size`.

    Raises:
        InputError: a size that the pool does not reduce to that of `y`, or an invalid option.

    Source: Chaman and Dokmanic, Truly shift-equivariant convolutional neural networks with adaptive
    polyphase upsampling, Asilomar 2021.
    """
    strides = one_for_each_axis("stride", stride, y.ndim - 2)
    largest = tuple(n * s for n, s in zip(y.shape[1:-1], strides, strict=True))
    sizes = largest if size is None else one_for_each_axis("size", size, len(strides))
    if any(not most - s < n <= most for n, s, most in zip(sizes, strides, largest, strict=True)):
        raise InputError(
            f"size {sizes} is not possible for {y.shape[1:-1]}: with stride {strides} it is "
            f"{largest}, or smaller by less than the stride"
        )
    x = put_phase(y, choice, strides, sizes)
    return x if filter_size == 1 else prod(strides) * blur_pool(x, filter_size, 1, padding)


def _split(x: Array, stride: Stride) -> tuple[Array, tuple[int, ...]]:
    """Splits each axis into position and phase: `(N, h, s, w, s, C)`."""
    check_map(x)
    x = jnp.asarray(x)
    strides = one_for_each_axis("stride", stride, x.ndim - 2)
    widths = [(0, -n % s) for n, s in zip(x.shape[1:-1], strides, strict=True)]
    if any(after for _, after in widths):
        mode = "wrap" if is_circular() else "edge"
        x = jnp.pad(x, [(0, 0), *widths, (0, 0)], mode=mode)
    shape = [n for size, s in zip(x.shape[1:-1], strides, strict=True) for n in (size // s, s)]
    return x.reshape(x.shape[0], *shape, x.shape[-1]), strides


def _select(x: Array, index: Array, axis: int) -> Array:
    """Returns `x[n].take(index[n], axis)` for each image n, by selects instead of a gather."""
    slices = [jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
    index = index.reshape(-1, *[1] * (x.ndim - 2))
    chosen = slices[0]
    for i, other in enumerate(slices[1:], 1):
        chosen = jnp.where(index == i, other, chosen)
    return chosen
