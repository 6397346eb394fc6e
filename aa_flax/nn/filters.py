"""Pools that filter every channel: average, Gaussian, Kaiser, ideal and learned filters."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.ops import conv_general_dilated
from aa_flax.ops.blur import (
    binomial_taps,
    check_options,
    one_for_each_axis,
    one_or_several,
    padding_widths,
)
from aa_flax.ops.filters import Taps, filter_pool, gaussian_taps, ideal_pool, kaiser_taps
from aa_flax.ops.lowpass import PAD_MODE, Padding
from aa_flax.ops.padding import given_padding, is_circular


class FilterPool(nnx.Module):
    """Filters every channel by fixed taps and keeps every `stride`-th value.

    Args:
        taps: the filter of every axis, or one for each axis.
        stride, padding: as in `blur_pool`.
    """

    def __init__(
        self, taps: Sequence[Taps], stride: int | Sequence[int] = 2, padding: Padding = "reflect"
    ):
        self.stride = check_options(1, stride, padding, 0).stride
        self.padding: Padding = padding
        self.taps = tuple(taps)

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        taps = self.taps * (x.ndim - 2) if len(self.taps) == 1 else self.taps
        return filter_pool(x, taps, self.stride, self.padding)


class GaussianPool(FilterPool):
    """Filters every channel by a sampled Gaussian and keeps every `stride`-th value.

    The pools `gaussian<k>`; `sigma` is that of `aa_flax.ops.filters.gaussian_taps`.
    """

    def __init__(
        self,
        filter_size: int = 5,
        stride: int | Sequence[int] = 2,
        padding: Padding = "reflect",
        *,
        sigma: float | None = None,
    ):
        super().__init__([gaussian_taps(filter_size, sigma)], stride, padding)


class KaiserPool(FilterPool):
    """Filters every channel by a Kaiser-windowed sinc and keeps every `stride`-th value.

    The pools `kaiser<k>`; `beta` is that of `aa_flax.ops.filters.kaiser_taps`. The cut-off is the
    Nyquist frequency of the subsampled map, so the filter follows from the stride; a wide one comes
    near the ideal low-pass filter. Some taps are negative: an edge may overshoot.

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
        strides = check_options(1, stride, padding, 0).stride
        strides = (strides,) if isinstance(strides, int) else strides
        super().__init__([kaiser_taps(filter_size, s, beta) for s in strides], stride, padding)


class AveragePool(nnx.Module):
    """Returns the means of adjacent windows as wide as the stride; BlurPool(2) for a stride of 2.

    The pool `average`. Where the stride does not divide the size, the border is replicated (within
    `circular_padding`, the map is continued periodically).
    """

    def __init__(self, stride: int | Sequence[int] = 2):
        self.stride = check_options(1, stride, "replicate", 0).stride

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        strides = one_for_each_axis("stride", self.stride, x.ndim - 2)
        taps = [(1 / s,) * s for s in strides]
        widths = [(0, -n % s) for n, s in zip(x.shape[1:-1], strides, strict=True)]
        return filter_pool(x, taps, strides, "replicate", pad_widths=widths)


class IdealPool(nnx.Module):
    """Crops the spectrum of the map to the frequencies that the coarser grid represents.

    The pool `ideal`: `aa_flax.ops.filters.ideal_pool` as a layer. Maps count as periodic.
    """

    def __init__(self, stride: int | Sequence[int] = 2):
        self.stride = check_options(1, stride, "circular", 0).stride

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        return ideal_pool(x, self.stride)


class LearnedPool(nnx.Module):
    """Filters each channel by its own positive weights, which sum to 1 and are learned.

    The pools `learned<k>`. The weights are the softmax of `logits`, `(k, k, 1, C)`, over the taps,
    and start as BlurPool's; `features` is the number of channels C.

    Raises:
        InputError: an invalid option, or a map of another rank or too small.

    Source: Zou et al., Delving Deeper into Anti-aliasing in ConvNets, BMVC 2020, Sec. 3: filters
    normalised by a softmax; theirs are predicted from the image, these are one for each channel.
    """

    padding: Padding

    def __init__(
        self, filter_size: int = 3, stride: int = 2, padding: Padding = "reflect", *, features: int
    ):
        size = one_or_several("filter_size", filter_size)
        _, step, self.padding, _ = check_options(1, stride, padding, 0)
        if not (isinstance(size, int) and isinstance(step, int)):
            raise InputError("a learned filter is square: give one filter_size and one stride")
        self.filter_size, self.stride = size, step
        taps = np.log(binomial_taps(self.filter_size))
        logits = np.add.outer(taps, taps).astype(np.float32)[..., None, None]
        self.logits = nnx.Param(jnp.tile(logits, (1, 1, 1, features)))

    @property
    def kernel(self) -> Float[Array, "k k 1 C"]:
        """The filters; the weights of each sum to 1."""
        return jax.nn.softmax(self.logits[...], axis=(0, 1))

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
        """Filters and subsamples; raises an InputError for maps that are too small."""
        if x.ndim != 4:
            raise InputError(f"a learned filter takes maps (N, H, W, C), got shape {x.shape}")
        widths = padding_widths(self.filter_size)
        mode: Padding = "circular" if is_circular() else self.padding
        least = 1 + max(widths) if mode == "reflect" else 1
        if min(x.shape[1:3]) < least:
            raise InputError(
                f"a map of spatial size {x.shape[1:3]} is too small for {mode} padding of "
                f"{self.filter_size} learned taps; use at least {least} pixels on each axis"
            )
        x = jnp.pad(x, ((0, 0), widths, widths, (0, 0)), mode=PAD_MODE[mode])
        strides, channels = (self.stride, self.stride), x.shape[-1]
        kernel, no_padding = self.kernel.astype(x.dtype), ((0, 0), (0, 0))
        with given_padding():
            return conv_general_dilated(
                x, kernel, strides, no_padding, feature_group_count=channels
            )
