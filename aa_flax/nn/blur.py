"""BlurPool, its adjoint and MaxBlurPool as layers (Zhang, ICML 2019, Sec. 3)."""

from collections.abc import Sequence
from typing import Never

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.ops import blur_pool, blur_upsample, max_pool
from aa_flax.ops.blur import FilterSize, check_options
from aa_flax.ops.lowpass import Padding
from aa_flax.ops.upsample import Gain, check_gain

_MOST_TAPS = 31  # a larger value is a number of channels, the first argument in the original


class BlurPool(nnx.Module):
    """`blur_pool` as a layer. It has no variables: the filter is fixed and never trained.

    Args are those of `blur_pool`; `filter_size` is at most 31 on each axis.

    Raises:
        InputError: an option that `blur_pool` does not accept, or the arguments of the PyTorch
            original, whose first is a number of channels.

    Source: Zhang, ICML 2019, Sec. 3.1, "BlurPool".

    Examples:
        >>> import aa_flax, jax.numpy as jnp
        >>> aa_flax.BlurPool(filter_size=4, stride=2)(jnp.ones((2, 56, 56, 64))).shape
        (2, 28, 28, 64)
    """

    filter_size: FilterSize
    padding: Padding

    def __init__(
        self,
        filter_size: FilterSize = 4,
        stride: int | Sequence[int] = 2,
        padding: Padding = "reflect",
        pad_offset: int = 0,
        **others: Never,
    ):
        options = check_options(filter_size, stride, padding, pad_offset)
        self.filter_size, self.stride, self.padding, self.pad_offset = options
        if others or (self.filter_size != "auto" and np.max(self.filter_size) > _MOST_TAPS):
            given = ", ".join(others) or f"filter_size={self.filter_size}"
            raise InputError(
                f"BlurPool takes (filter_size, stride, padding, pad_offset), a filter_size of at "
                f"most {_MOST_TAPS}, and no channels, unlike the PyTorch original; got {given}; "
                "write BlurPool(4, 2) for its BlurPool(channels, filt_size=4, stride=2)"
            )

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        return blur_pool(x, self.filter_size, self.stride, self.padding, self.pad_offset)


class BlurUpsample(nnx.Module):
    """`blur_upsample` as a layer: the counterpart of `BlurPool` in decoders, without variables.

    Args are those of `blur_upsample`, except for the size, which is an argument of the call.

    Examples:
        >>> import aa_flax, jax.numpy as jnp
        >>> x = jnp.ones((1, 9, 7, 3))
        >>> y = aa_flax.BlurPool(4)(x)
        >>> aa_flax.BlurUpsample(4)(y, size=x.shape[1:-1]).shape
        (1, 9, 7, 3)
    """

    filter_size: FilterSize
    padding: Padding

    def __init__(
        self,
        filter_size: FilterSize = 4,
        stride: int | Sequence[int] = 2,
        padding: Padding = "reflect",
        pad_offset: int = 0,
        *,
        gain: Gain = "stride",
    ):
        options = check_options(filter_size, stride, padding, pad_offset)
        self.filter_size, self.stride, self.padding, self.pad_offset = options
        self.gain: Gain = check_gain(gain)

    def __call__(
        self, x: Float[Array, "N *spatial C"], size: int | Sequence[int] | None = None
    ) -> Float[Array, "N *out C"]:
        options = (self.filter_size, self.stride, self.padding, self.pad_offset)
        return blur_upsample(x, *options, size=size, gain=self.gain)


class MaxBlurPool(nnx.Module):
    """An antialiased max pool: a dense maximum (stride 1), then `BlurPool`.

    Args:
        window, window_padding: of the maximum, in pixels; padding is never the maximum.
        filter_size, stride, padding: as in `blur_pool`.

    Source: Zhang, ICML 2019, Sec. 3.2, "MaxPool -> MaxBlurPool".

    Examples:
        >>> import aa_flax, jax.numpy as jnp
        >>> aa_flax.MaxBlurPool(window=2)(jnp.ones((1, 32, 32, 8))).shape
        (1, 16, 16, 8)
    """

    def __init__(
        self,
        window: int = 2,
        filter_size: FilterSize = 4,
        stride: int = 2,
        padding: Padding = "reflect",
        window_padding: int = 0,
    ):
        self.window = window
        self.window_padding = window_padding
        self.blur = BlurPool(filter_size, stride, padding)

    def __call__(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *out C"]:
        return self.blur(max_pool(x, self.window, stride=1, padding=self.window_padding))
