"""Subsampling behind the ideal low-pass filter."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from aa_flax.ops.blur import check_options
from aa_flax.ops.ideal import ideal_pool
from aa_flax.pools.registry import register_pool


class IdealPool(nnx.Module):
    """Crops the Fourier transform of the map to the frequencies that the sparser grid can hold.

    The pool `ideal`: `aa_flax.ops.ideal.ideal_pool` as a layer. Maps count as periodic. It holds
    no variable. A map `(N, *spatial, C)` gets `ceil(n / stride)` values on each spatial axis.

    Args:
        stride: subsampling factor, 1 or more; one number, or one for each axis.

    Raises:
        InputError: another stride.

    Source: Grabinski et al., FrequencyLowCut Pooling, ECCV 2022; Michaeli et al., Alias-Free
    Convnets, CVPR 2023, Sec. 3.
    """

    def __init__(self, stride: int | Sequence[int] = 2):
        self.stride = check_options(1, stride, "circular", 0).stride

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        return ideal_pool(x, self.stride)


register_pool("ideal", IdealPool)
