"""Subsampling behind filters that are trained, one for each channel."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.ops import conv_general_dilated
from aa_flax.ops.blur import binomial_taps, check_options, padding_widths
from aa_flax.ops.lowpass import PAD_MODE, Padding
from aa_flax.ops.padding import given_padding, is_circular
from aa_flax.pools.registry import register_pool


class LearnedPool(nnx.Module):
    """Filters each channel by positive weights of its own that sum to 1, learned with the net.

    The pools `learned<k>`. The weights are the softmax of `logits`, `(k, k, 1, C)`, over the taps,
    and start as BlurPool's. A map `(N, H, W, C)` gets `ceil(n / stride)` values on each axis.

    Args:
        filter_size: taps on each axis, 1 or more.
        stride: subsampling factor of both axes, 1 or more.
        padding: that of `blur_pool`.
        features: channels of the maps.

    Raises:
        InputError: an option that is none of these, or a map of another rank or too small.

    Source: Zou et al., Delving Deeper into Anti-aliasing in ConvNets, BMVC 2020, Sec. 3: filters
    normalised by a softmax; theirs follow from the image, these are one for each channel.
    """

    def __init__(
        self,
        filter_size: int = 3,
        stride: int = 2,
        padding: Padding = "reflect",
        *,
        features: int,
    ):
        options = check_options(filter_size, stride, padding, 0)
        if not (isinstance(options.filter_size, int) and isinstance(options.stride, int)):
            raise InputError("a learned filter is square: give one filter_size and one stride")
        self.filter_size, self.stride = options.filter_size, options.stride
        self.padding: Padding = padding
        taps = np.log(binomial_taps(self.filter_size))
        logits = np.add.outer(taps, taps).astype(np.float32)[..., None, None]
        self.logits = nnx.Param(jnp.tile(logits, (1, 1, 1, features)))

    @property
    def kernel(self) -> Float[Array, "k k 1 C"]:
        """The filters, each with a sum of 1."""
        return jax.nn.softmax(self.logits[...], axis=(0, 1))

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
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
        strides, no_padding = (self.stride, self.stride), ((0, 0), (0, 0))
        kernel = self.kernel.astype(x.dtype)
        with given_padding():
            return conv_general_dilated(
                x, kernel, strides, no_padding, feature_group_count=x.shape[-1]
            )


register_pool("learned<k>", LearnedPool, widths=(3, 5))
