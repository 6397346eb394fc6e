"""Adaptive polyphase sampling: keep the phase of the largest norm."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from aa_flax.errors import InputError
from aa_flax.ops import blur_pool
from aa_flax.ops.blur import check_options
from aa_flax.ops.lowpass import Padding
from aa_flax.ops.polyphase import polyphase, take_phase
from aa_flax.pools.registry import register_pool
from aa_flax.pools.upsample import upsample_phase

Norm = Literal["l2", "l1", "linf"]


class AdaptivePool(nnx.Module):
    """Keeps, of each image, every `stride`-th position from where these are largest (APS).

    The pools `aps_l2`, `aps_l1` and `aps_linf`, and `aps_lpf<k>` with BlurPool's filter of k taps
    before (and `l2`). If a periodic image moves by any number of pixels, so do the values that are
    kept, on their grid: a net of such pools, with circular padding and no other strides, gives
    exactly the moved features, untrained, too, where its strides divide the size of its maps. It
    holds no variable. A map `(N, *spatial, C)` gets `ceil(n / stride)` values on each spatial axis.

    Args:
        stride: subsampling factor, 1 or more; one number, or one for each axis.
        norm: what "largest" means: the sum of squares, of magnitudes, or the largest magnitude,
            over positions and channels. Where `linf` finds equals, as behind a max pool, their sums
            of squares decide; of phases that are equal still the first is taken.
        filter_size: taps of the binomial filter before, as in `blur_pool`; 1: none.
        padding: of that filter, as in `blur_pool`.

    Raises:
        InputError: an option that is none of these.

    Source: Chaman and Dokmanic, Truly shift-invariant convolutional neural networks, CVPR 2021:
    Sec. 3, and 4.2 (with a filter, and shortcuts that follow the main branch).
    """

    def __init__(
        self,
        stride: int | Sequence[int] = 2,
        norm: Norm = "l2",
        filter_size: int | Sequence[int] = 1,
        padding: Padding = "reflect",
    ):
        if norm not in get_args(Norm):
            raise InputError(f"norm must be one of {', '.join(get_args(Norm))}; got {norm!r}")
        options = check_options(filter_size, stride, padding, 0)
        self.stride, self.filter_size = options.stride, options.filter_size
        self.padding: Padding = padding
        self.norm: Norm = norm

    def choose(self, x: Float[Array, "N *spatial C"]) -> Int[Array, " N"]:
        """The number of each image's phase of the largest norm."""
        phases = jnp.abs(polyphase(self._blurred(x), self.stride))
        phases = phases.astype(np.promote_types(x.dtype, jnp.float32))
        axes = tuple(range(2, phases.ndim))
        if self.norm == "l1":
            return phases.sum(axes).argmax(1)
        energy = jnp.square(phases).sum(axes)
        if self.norm == "linf":  # a max pool gives several phases the same largest value
            largest = phases.max(axes)
            energy = jnp.where(largest == largest.max(1, keepdims=True), energy, -1)
        return energy.argmax(1)

    def __call__(
        self, x: Float[Array, "N *spatial C"], choice: Int[Array, " N"]
    ) -> Float[Array, "N *out C"]:
        return take_phase(self._blurred(x), choice, self.stride)

    def upsample(
        self,
        y: Float[Array, "N *out C"],
        choice: Int[Array, " N"],
        size: int | Sequence[int] | None = None,
    ) -> Float[Array, "N *spatial C"]:
        """Puts values back at the phase they are from: see `aa_flax.pools.upsample_phase`."""
        return upsample_phase(y, choice, self.stride, self.filter_size, self.padding, size=size)

    def _blurred(self, x: Array) -> Array:
        return x if self.filter_size == 1 else blur_pool(x, self.filter_size, 1, self.padding)


def _behind_filter(filter_size: int, stride: int | Sequence[int]) -> AdaptivePool:
    return AdaptivePool(stride, filter_size=filter_size)


for _norm in get_args(Norm):
    register_pool(f"aps_{_norm}", partial(AdaptivePool, norm=_norm))
register_pool("aps_lpf<k>", _behind_filter, widths=(2, 3, 5))
