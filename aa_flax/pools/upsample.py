"""Upsampling partner of the pools that choose a phase."""

from collections.abc import Sequence
from math import prod

from jaxtyping import Array, Float, Int

from aa_flax.errors import InputError
from aa_flax.ops import blur_pool
from aa_flax.ops.blur import one_for_each_axis
from aa_flax.ops.lowpass import Padding
from aa_flax.ops.polyphase import put_phase


def upsample_phase(
    y: Float[Array, "N *out C"],
    choice: Int[Array, " N"] | Float[Array, "N phases"],
    stride: int | Sequence[int] = 2,
    filter_size: int | Sequence[int] = 1,
    padding: Padding = "reflect",
    *,
    size: int | Sequence[int] | None = None,
) -> Float[Array, "N *spatial C"]:
    """Puts values back at the phase that a pool kept, zeros elsewhere, and filters if asked to.

    An encoder and a decoder whose pools and upsamplings share their choices move with a periodic
    image by any number of pixels.

    Args:
        y: with one to three spatial axes, channels last, floating point.
        choice: the pool's: numbers of phases, or the weights it mixed them with.
        stride: the pool's.
        filter_size, padding: of a binomial filter behind, as in `blur_pool`, times the stride of
            each axis, so that the mean stays what it was; 1: none, and no gain.
        size: pixels of the result, one number or one for each axis. Default: `stride` times those
            of `y`.

    Returns:
        The same type as `y`, of spatial size `size`.

    Raises:
        InputError: a size that a pool does not take to that of `y`, or an option that is none.

    Source: Chaman and Dokmanic, Truly shift-equivariant convolutional neural networks with adaptive
    polyphase upsampling, Asilomar 2021.
    """
    strides = one_for_each_axis("stride", stride, y.ndim - 2)
    largest = tuple(n * s for n, s in zip(y.shape[1:-1], strides, strict=True))
    sizes = largest if size is None else one_for_each_axis("size", size, len(strides))
    if any(not most - s < n <= most for n, s, most in zip(sizes, strides, largest, strict=True)):
        raise InputError(
            f"size {sizes} cannot be had from {y.shape[1:-1]}: with stride {strides} there are up "
            f"to {largest} pixels, and fewer by less than the stride"
        )
    x = put_phase(y, choice, strides, sizes)
    return x if filter_size == 1 else prod(strides) * blur_pool(x, filter_size, 1, padding)
