"""Scores by which `canonical` and `canonical_crop` choose positions, in integers.

A score may serve as a guarantee only if it moves with the image to the last bit. Sums of floats do
not: their rounding depends on the order, which a roll changes. Here pixels are first rounded to
integers, one by one, and integer sums are exact in any order (an overflow wraps, also in any
order). `x` has the shape `(N, H, W, C)`, and images continue periodically unless said otherwise.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped, UInt32

_STEPS, _MOST = 64, 2**14  # floats are rounded to 1/64 and clipped at 256
# Odd multipliers of two independent 32-bit hashes, random but fixed.
_ODD = (0x9E3779B1, 0x7FEB352D), (0x85157AF5, 0x58F38DED), (0xC9A4B8E7, 0x6C62272F)


def levels(x: Shaped[Array, "N H W C"]) -> Int[Array, "N H W C"]:
    """Rounds each pixel to an integer; pixels that are not finite count as 0."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jnp.where(jnp.isfinite(x), x, 0).astype(jnp.float32)
        return jnp.round(jnp.clip(x * _STEPS, -_MOST, _MOST)).astype(jnp.int32)
    return jnp.clip(x.astype(jnp.int32), -_MOST, _MOST)


def seams(x: Shaped[Array, "N H W C"]) -> Bool[Array, "N H W"]:
    """Marks the crossing of the strongest seam between rows with that between columns.

    With D_i the sum of |row i - row i-1|, the seam is where 2 D_i - D_(i-1) - D_(i+1) is largest.
    In a photograph that is its border, where opposite sides meet; row and column 0, unless rolled.
    """
    values = levels(x)

    def along(axis: int) -> Array:
        steps = jnp.abs(values - jnp.roll(values, 1, axis)).sum((3 - axis, 3))
        excess = 2 * steps - jnp.roll(steps, 1, 1) - jnp.roll(steps, -1, 1)
        return excess == excess.max(1, keepdims=True)

    return along(1)[:, :, None] & along(2)[:, None, :]


def peaks(x: Shaped[Array, "N H W C"], side: int) -> Bool[Array, "N H W"]:
    """Marks the positions whose window of `side` pixels, down and right, has most contrast."""
    before, after = 1, side - 1
    widths = [(0, 0), (before, after), (before, after), (0, 0)]
    found = contrast(jnp.pad(x, widths, mode="wrap"), side)
    return found == found.max((1, 2), keepdims=True)


def contrast(x: Shaped[Array, "N H W C"], side: int) -> Int[Array, "N H-side W-side"]:
    """Sums the steps from pixel to pixel, down and right, in windows of `side` pixels.

    Of the mean over channels, and without continuing the image: the first row and column only serve
    as neighbours.
    """
    grey = levels(x).sum(-1) // x.shape[-1]
    inner = grey[:, 1:, 1:]
    steps = jnp.abs(inner - grey[:, :-1, 1:]) + jnp.abs(inner - grey[:, 1:, :-1])
    sums = jnp.pad(steps.cumsum(1).cumsum(2), [(0, 0), (1, 0), (1, 0)])
    sums = sums[:, side:] - sums[:, :-side]
    return sums[:, :, side:] - sums[:, :, :-side]


def unique(x: Shaped[Array, "N H W C"], marked: Bool[Array, "N H W"]) -> Int[Array, "N 2"]:
    """Chooses one of each image's marked positions, by its content: (row, column).

    Among several, that of the largest hash of the whole image as seen from there. Positions with
    the same hash see the same image (but for collisions, of probability 2^-64 a pair), so the first
    of them is as good as any.
    """

    def narrowed(marked: Array) -> Array:
        for key in hashes(x):
            best = jnp.where(marked, key, 0).max((1, 2), keepdims=True)
            marked = marked & (key == best)
        return marked

    several = (marked.sum((1, 2)) > 1).any()
    marked = lax.cond(several, narrowed, lambda marked: marked, marked)
    first = marked.reshape(len(x), -1).argmax(1)
    return jnp.stack(jnp.divmod(first, x.shape[2]), 1)


def hashes(x: Shaped[Array, "N H W C"]) -> UInt32[Array, "2 N H W"]:
    """Computes two hashes of the image as seen from each position.

    By doubling: a hash of 2^t pixels is that of the first half combined with that of the second,
    until they cover the axis.
    """
    words = _words(x)
    pixel, right, down = (jnp.asarray(odd, jnp.uint32)[:, None, None, None] for odd in _ODD)
    channel = jnp.arange(1, 2 * words.shape[-1], 2, dtype=jnp.uint32)
    keys = (_mixed(words * pixel[..., None] + channel) * channel).sum(-1, dtype=jnp.uint32)
    for axis, odd in ((3, right), (2, down)):
        span = 1
        while span < keys.shape[axis]:
            keys = _mixed(keys * odd + jnp.roll(keys, -span, axis))
            span *= 2
    return keys


def _mixed(keys: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Makes every bit of each number depend on all of its bits: a bijection."""
    for odd in (0x9E3779B1, 0x85EBCA77):
        keys = (keys ^ (keys >> 16)) * jnp.uint32(odd)
    return keys ^ (keys >> 16)


def _words(x: Shaped[Array, "N H W C"]) -> UInt32[Array, "N H W words"]:
    """Returns the bits of each pixel as numbers of 32 bits."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = 8 * x.dtype.itemsize
    found = lax.bitcast_convert_type(x, f"uint{min(bits, 32)}").astype(jnp.uint32)
    return found.reshape(*x.shape[:3], -1)
