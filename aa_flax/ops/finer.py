"""A finer grid for nonlinearities: interpolation by an integer factor, and the filter back.

A nonlinearity of a band-limited map has frequencies that the map's grid cannot represent. A grid
that is `factor` times as fine represents more of them, and a low-pass filter removes those before
every `factor`-th position is kept. The finer grid contains the positions of the map.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from aa_flax.ops.blur import padding_widths
from aa_flax.ops.filters import Taps, along, filter_pool, ideal_matrix, ideal_pool, kaiser_taps
from aa_flax.ops.lowpass import Padding
from aa_flax.ops.padding import is_circular


@dataclass(frozen=True)
class FineGrid:
    """A grid `factor` times as fine, on every spatial axis of maps `(N, *spatial, C)`.

    Both directions filter by a sinc under a Kaiser window, of 6 * factor + 1 taps. Interpolation
    keeps the values of the map, and repeats those of a constant.

    Args:
        factor: 2 or more.
        padding: how the filters continue maps at the border, as in `blur_pool`.
        ideal: filter in the Fourier domain instead, as `ideal_pool` does; maps count as periodic.

    Source: Karras et al., Alias-Free Generative Adversarial Networks, NeurIPS 2021, Sec. 3.2;
    Michaeli et al., Alias-Free Convnets, CVPR 2023, Sec. 3 (ideal).
    """

    factor: int
    padding: Padding = "reflect"
    ideal: bool = False

    def finer(self, x: Float[Array, "N *spatial C"]) -> Float[Array, "N *fine C"]:
        """Interpolates a map."""
        return _along_each_axis(self._interpolated, x)

    def coarser(self, y: Float[Array, "N *fine C"]) -> Float[Array, "N *spatial C"]:
        """Filters a map of the finer grid and keeps every `factor`-th position."""
        return _along_each_axis(self._subsampled, y)

    def fine_size(self, size: int) -> int:
        """Returns the fine size of an axis: once around, or from its first position to its last."""
        is_periodic = self.ideal or self.padding == "circular" or is_circular()
        return self.factor * size if is_periodic else self.factor * (size - 1) + 1

    def flops(self, shape: Sequence[int]) -> tuple[float, float]:
        """Returns the FLOPs of `finer` for a map, and of `coarser` for the map that results.

        Of one axis after the other; a multiplication and an addition are two.
        """
        up, down, (*outer, channels) = 0.0, 0.0, shape
        fine = [outer[0], *map(self.fine_size, outer[1:])]
        between = sum(map(len, _phases(self.factor)[1:]))
        for axis, size in list(enumerate(outer))[1:]:
            others = prod(fine[:axis]) * prod(outer[axis + 1 :]) * channels
            up += 2.0 * others * size * (fine[axis] if self.ideal else between)
            others = prod(outer[:axis]) * prod(fine[axis + 1 :]) * channels
            down += 2.0 * others * size * (fine[axis] if self.ideal else len(_taps(self.factor)))
        return up, down

    def _interpolated(self, x: Array, axis: int) -> Array:
        size, f = x.shape[axis], self.factor
        if self.ideal:
            return along(x, axis, f * ideal_matrix(f * size, f).T)
        phases = [x]
        for taps in _phases(f)[1:]:  # each between the positions of the map
            phases.append(self._filtered(x, axis, taps, 1, (len(taps) // 2 - 1, len(taps) // 2)))
        shape = (*x.shape[:axis], f * size, *x.shape[axis + 1 :])
        fine = jnp.stack(phases, axis + 1).reshape(shape)
        return lax.slice_in_dim(fine, 0, self.fine_size(size), axis=axis)

    def _subsampled(self, y: Array, axis: int) -> Array:
        if self.ideal:
            return ideal_pool(y, [self.factor if i == axis else 1 for i in range(1, y.ndim - 1)])
        taps = _taps(self.factor)
        return self._filtered(y, axis, taps, self.factor, padding_widths(len(taps)))

    def _filtered(
        self, x: Array, axis: int, taps: Taps, stride: int, widths: tuple[int, int]
    ) -> Array:
        """Filters one axis."""
        axes = range(1, x.ndim - 1)
        filters = [taps if i == axis else (1.0,) for i in axes]
        strides = [stride if i == axis else 1 for i in axes]
        pads = [widths if i == axis else (0, 0) for i in axes]
        return filter_pool(x, filters, strides, self.padding, pad_widths=pads)


def _taps(factor: int) -> Taps:
    return kaiser_taps(6 * factor + 1, factor)


@lru_cache(maxsize=64)
def _phases(factor: int) -> list[Taps]:
    """Returns the filter of each position between two of the map, the first of which it keeps.

    Position p is interpolated from the six nearest values, by every `factor`-th tap.
    """
    taps = _taps(factor)
    phases = [taps[p::factor] for p in range(factor)]
    return [tuple(tap / sum(phase) for tap in reversed(phase)) for phase in phases]


def _along_each_axis(function: Callable[[Array, int], Array], x: Array) -> Array:
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis in range(1, x.ndim - 1):
        y = function(y, axis)
    return y.astype(x.dtype)
