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
from jax import lax
from jaxtyping import Array, Float, Int

from aa_flax.ops.blur import blur_pool, check_map, one_for_each_axis
from aa_flax.ops.lowpass import Padding
from aa_flax.ops.padding import is_circular
from aa_flax.ops.upsample import upsampled_size

Stride = int | Sequence[int]
Choice = Int[Array, " N"] | Float[Array, "N phases"]  # a phase, or weights, for each image


def polyphase(x: Float[Array, "N *spatial C"], stride: Stride) -> Float[Array, "N phases *out C"]:
    """Returns all phases of each image."""
    split, strides = _split(x, stride)
    last = split.ndim - 1
    phases = split.transpose(0, *range(2, last, 2), *range(1, last, 2), last)
    return phases.reshape(x.shape[0], prod(strides), *phases.shape[1 + len(strides) :])


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
        phase = y[:, *(i for offset in offsets for i in (slice(None), offset))]
        weight = weights[:, p].reshape(-1, *[1] * (x.ndim - 1))
        terms.append(phase * weight.astype(x.dtype))
    return reduce(jnp.add, terms)


def put_phase(
    y: Float[Array, "N *out C"], phase: Choice, stride: Stride, size: Sequence[int]
) -> Float[Array, "N *spatial C"]:
    """Puts values back at their phase, zeros elsewhere, and crops: the adjoint of `take_phase`."""
    strides = one_for_each_axis("stride", stride, y.ndim - 2)
    is_weights = jnp.issubdtype(phase.dtype, jnp.floating)
    weights = (phase if is_weights else jax.nn.one_hot(phase, prod(strides))).astype(y.dtype)
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
        choice, stride: those of the pool: numbers of phases, or the weights it mixed them with.
        filter_size, padding: of a binomial filter after it, as in `blur_pool`, with the stride of
            each axis as gain, so that the mean is preserved; 1: no filter and no gain.
        size: pixels of the result, one number or one for each axis. Default: `stride` times those
            of `y`.

    Source: Chaman and Dokmanic, Truly shift-equivariant convolutional neural networks with adaptive
    polyphase upsampling, Asilomar 2021.
    """
    strides = one_for_each_axis("stride", stride, y.ndim - 2)
    x = put_phase(y, choice, strides, upsampled_size(y.shape[1:-1], size, strides))
    if filter_size == 1:
        return x
    sizes = one_for_each_axis("filter_size", filter_size, len(strides))
    return prod(strides) * blur_pool(x, sizes, 1, padding)


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
    chosen, *others = (lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis]))
    index = index.reshape(-1, *[1] * (x.ndim - 2))
    for i, other in enumerate(others, 1):
        chosen = jnp.where(index == i, other, chosen)
    return chosen
