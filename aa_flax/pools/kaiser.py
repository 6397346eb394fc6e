"""Subsampling behind a sinc of any width, cut off by a Kaiser window."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from aa_flax.ops.blur import check_options, one_for_each_axis
from aa_flax.ops.filters import filter_pool, kaiser_taps
from aa_flax.ops.lowpass import Padding
from aa_flax.pools.registry import register_pool


class KaiserPool(nnx.Module):
    """Filters every channel by a Kaiser-windowed sinc and keeps every `stride`-th value.

    The pools `kaiser<k>`. The sinc cuts at the Nyquist frequency of the subsampled map, so the
    filter follows from the stride; a wide one comes near the ideal low-pass. Some taps are
    negative: an edge may overshoot. It holds no variable. A map `(N, *spatial, C)` gets
    `ceil(n / stride)` values on each spatial axis.

    Args:
        filter_size: taps, 1 or more.
        stride, padding: those of `blur_pool`.
        beta: the window's shape, 0 or more; default: see `aa_flax.ops.filters.kaiser_taps`.

    Raises:
        InputError: an option that is none of these.

    Source: Kaiser, 1974; in networks Karras et al., Alias-Free GAN, NeurIPS 2021, Appendix C.1.
    """

    def __init__(
        self,
        filter_size: int = 7,
        stride: int | Sequence[int] = 2,
        padding: Padding = "reflect",
        *,
        beta: float | None = None,
    ):
        self.stride = check_options(1, stride, padding, 0).stride
        self.padding: Padding = padding
        strides = (self.stride,) if isinstance(self.stride, int) else self.stride
        self.taps = tuple(kaiser_taps(filter_size, s, beta) for s in strides)

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        strides = one_for_each_axis("stride", self.stride, x.ndim - 2)
        taps = self.taps if len(self.taps) > 1 else self.taps * len(strides)
        return filter_pool(x, taps, strides, self.padding)


register_pool("kaiser<k>", KaiserPool, widths=(5, 7, 9))
