"""Average pooling: the mean of adjoining windows as wide as the stride."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from aa_flax.ops.blur import check_options, one_for_each_axis
from aa_flax.ops.filters import filter_pool
from aa_flax.pools.registry import register_pool


class AveragePool(nnx.Module):
    """The mean of adjoining windows of `stride` pixels; with stride 2 that is BlurPool of 2 taps.

    The pool `average`. It holds no variable. A map `(N, *spatial, C)` gets `ceil(n / stride)`
    values on each spatial axis: where the stride does not divide the size, the border is repeated
    (within `circular_padding` the map).

    Args:
        stride: window and subsampling factor, 1 or more; one number, or one for each axis.

    Raises:
        InputError: another stride.
    """

    def __init__(self, stride: int | Sequence[int] = 2):
        self.stride = check_options(1, stride, "replicate", 0).stride

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        strides = one_for_each_axis("stride", self.stride, x.ndim - 2)
        taps = [(1 / s,) * s for s in strides]
        widths = [(0, -n % s) for n, s in zip(x.shape[1:-1], strides, strict=True)]
        return filter_pool(x, taps, strides, "replicate", pad_widths=widths)


register_pool("average", AveragePool)
