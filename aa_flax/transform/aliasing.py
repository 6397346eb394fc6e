"""Aliasing at each subsampling site: energy that the coarser grid cannot represent, and its damage.

A site keeps every s-th position of a dense map x. With X the discrete Fourier transform of x over
its spatial axes (frequencies in radians a pixel), B the frequencies that the coarser grid can
represent, |w| < pi / s on every axis, and P the ideal low-pass filter, which keeps those alone:

    aliasing energy   A = sum of |X(w)|^2 over w not in B  /  sum of |X(w)|^2 over w != 0
    damage            D = |x' - (P x)'|^2 / |(P x)'|^2     where y' keeps every s-th position of y

The sums run over images and channels, too. A is the fraction of the map's variation that turns
into something else, D how far that moves what is kept. An ideal filter has A = D = 0; noise without
a filter, at stride 2 on two axes, A = 3/4 and D near 3. The Fourier transform continues maps
periodically: a map whose opposite borders differ has some energy at all frequencies.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_ROUNDING = 1e-12  # of a map's energy: a variation below that is rounding of a constant map


@dataclass
class Aliasing:
    """Energies of the maps that a run subsamples, by the site's key.

    They leave the program by a callback, since a site may be in a loop or a branch of it.
    """

    sums: dict[Any, np.ndarray] = field(default_factory=dict)

    def add(self, keys: Iterable[Any], dense: Array, strides: Mapping[int, int]) -> None:
        """Adds a dense map, of which the site keeps positions by the strides of its axes."""
        if jnp.issubdtype(dense.dtype, jnp.floating):
            jax.debug.callback(partial(self._add, tuple(keys)), energies(dense, strides))

    def _add(self, keys: tuple[Any, ...], found: np.ndarray) -> None:
        for key in keys:
            self.sums[key] = self.sums.get(key, 0) + np.asarray(found, np.float64)

    def is_finite(self, key: Any) -> bool:
        """Checks what was measured at a site, if anything was."""
        return key not in self.sums or bool(np.isfinite(self.sums[key]).all())

    def ratios(self, key: Any) -> tuple[float, float]:
        """Returns A and D of a site; NaN if nothing was measured there."""
        aliased, total, damage, kept = self.sums.get(key, np.full(4, np.nan))
        return _ratio(aliased, total), _ratio(damage, kept)


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return float("inf") if part > 0 else 0.0
    return float(part / whole)


def energies(x: Float[Array, "..."], strides: Mapping[int, int]) -> Float[Array, " 4"]:
    """Computes both terms of A, then of D; see the module.

    Args:
        x: a map with any axes.
        strides: of each spatial axis, by its number.
    """
    axes = tuple(strides)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    is_kept, is_constant = np.ones((), bool), np.ones((), bool)
    for axis, stride in strides.items():
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        size = x.shape[axis]
        waves = np.abs(np.rint(size * np.fft.fftfreq(size))).reshape(shape)
        fits = 2 * stride * waves < size if stride > 1 else np.ones(shape, bool)
        is_kept, is_constant = is_kept & fits, is_constant & (waves == 0)
    spectrum = jnp.fft.fftn(x, axes=axes)
    power = jnp.square(jnp.abs(spectrum)) / np.prod([x.shape[axis] for axis in axes])
    every = tuple(slice(None, None, strides.get(axis)) for axis in range(x.ndim))
    ideal = jnp.fft.ifftn(jnp.where(is_kept, spectrum, 0), axes=axes).real[every]
    aliased, varies = (jnp.sum(power, where=~where) for where in (is_kept, is_constant))
    is_rounding = varies <= _ROUNDING * jnp.sum(power)
    return jnp.stack(
        [
            *(jnp.where(is_rounding, 0, energy) for energy in (aliased, varies)),
            jnp.sum(jnp.square(x[every] - ideal)),
            jnp.sum(jnp.square(ideal)),
        ]
    )
