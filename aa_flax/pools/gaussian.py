"""Subsampling behind a Gaussian filter of any width."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from aa_flax.ops.blur import check_options
from aa_flax.ops.filters import filter_pool, gaussian_taps
from aa_flax.ops.lowpass import Padding
from aa_flax.pools.registry import register_pool


class GaussianPool(nnx.Module):
    """Filters every channel by a sampled Gaussian and keeps every `stride`-th value.

    The pools `gaussian<k>`. It holds no variable. A map `(N, *spatial, C)` gets `ceil(n / stride)`
    values on each spatial axis.

    Args:
        filter_size: taps, 1 or more.
        stride, padding: those of `blur_pool`.
        sigma: standard deviation in pixels; default 0.3 ((filter_size - 1) / 2 - 1) + 0.8, that of
            OpenCV's `getGaussianKernel`.

    Raises:
        InputError: an option that is none of these.
    """

    def __init__(
        self,
        filter_size: int = 5,
        stride: int | Sequence[int] = 2,
        padding: Padding = "reflect",
        *,
        sigma: float | None = None,
    ):
        self.stride = check_options(1, stride, padding, 0).stride
        self.padding: Padding = padding
        self.taps = gaussian_taps(filter_size, sigma)

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        return filter_pool(x, [self.taps] * (x.ndim - 2), self.stride, self.padding)


register_pool("gaussian<k>", GaussianPool, widths=(3, 5, 7))
