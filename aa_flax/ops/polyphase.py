"""Polyphase components: the `stride ** axes` ways to keep every `stride`-th position.

Phase p of an image (of a square stride s: p = s i + j) holds the positions `[i::s, j::s]`. Each has
`ceil(N / stride)` positions on an axis; where the stride does not divide the size, the border is
repeated (within `circular_padding`: the image is).
"""

from collections.abc import Sequence
from functools import reduce
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aa_flax.ops.blur import check_map, one_for_each_axis
from aa_flax.ops.padding import is_circular

Stride = int | Sequence[int]


def polyphase(x: Float[Array, "N *spatial C"], stride: Stride) -> Float[Array, "N phases *out C"]:
    """All phases of each image, beside each other."""
    split, strides = _split(x, stride)
    dims = len(strides)
    inner = [2 + 2 * i for i in range(dims)]
    outer = [1 + 2 * i for i in range(dims)]
    phases = split.transpose(0, *inner, *outer, split.ndim - 1)
    return phases.reshape(x.shape[0], prod(strides), *phases.shape[1 + dims :])


def take_phase(
    x: Float[Array, "N *spatial C"], phase: Int[Array, " N"], stride: Stride
) -> Float[Array, "N *out C"]:
    """One phase of each image."""
    y, strides = _split(x, stride)
    for axis, offset in enumerate(jnp.unravel_index(phase, strides), 1):
        y = _select(y, offset, axis + 1)  # each step takes an axis away
    return y


def mix_phases(
    x: Float[Array, "N *spatial C"], weights: Float[Array, "N phases"], stride: Stride
) -> Float[Array, "N *out C"]:
    """The sum of each image's phases, weighted."""
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
    phase: Int[Array, " N"] | Float[Array, "N phases"],
    stride: Stride,
    size: Sequence[int],
) -> Float[Array, "N *spatial C"]:
    """Puts values back at their phase, zeros elsewhere: the adjoint of `take_phase`.

    Args:
        phase: where the values were taken from, or the weights they were mixed with.
        size: pixels of the result on each axis; `stride` divides them, or what is beyond them is
            dropped.
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
    whole = [m * s for m, s in zip(y.shape[1:-1], strides, strict=True)]
    x = x.reshape(y.shape[0], *whole, y.shape[-1])
    return x[:, *(slice(n) for n in size)]


def _split(x: Array, stride: Stride) -> tuple[Array, tuple[int, ...]]:
    """`(N, h, s, w, s, C)`: position, then phase, of each axis."""
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
    """`x[n].take(index[n], axis)` of each image, as a choice between slices: no gather."""
    slices = [jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
    index = index.reshape(-1, *[1] * (x.ndim - 2))
    chosen = slices[0]
    for i, other in enumerate(slices[1:], 1):
        chosen = jnp.where(index == i, other, chosen)
    return chosen
