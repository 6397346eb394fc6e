"""The finer grid of activations: interpolation and the filter back."""

import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax.errors import InputError
from aa_flax.ops.filters import kaiser_taps
from aa_flax.ops.finer import FineGrid

MODES: dict = {"reflect": "reflect", "circular": "wrap", "replicate": "edge", "zero": "constant"}
RNG = np.random.default_rng(0)


def continued(x, width, padding):
    return np.pad(x, [(0, 0), (width, width), (0, 0)], MODES[padding])


def filtered(x, taps, mode):
    signals = x.transpose(0, 2, 1).reshape(-1, x.shape[1])
    y = np.stack([np.convolve(signal, taps, mode) for signal in signals])
    return y.reshape(len(x), x.shape[2], -1).transpose(0, 2, 1)


def slowly(x, factor, padding):
    """Returns the interpolation of a padded signal, and the filter's result."""
    taps, wide = np.array(kaiser_taps(6 * factor + 1, factor)), continued(x, 8, padding)
    stuffed, ones = np.zeros((2, x.shape[0], factor * wide.shape[1], x.shape[2]))
    stuffed[:, ::factor], ones[:, ::factor] = wide, 1
    # Divided by the gain of a constant at each position between those of the map.
    fine = filtered(stuffed, taps, "same") / filtered(ones, taps, "same")
    size = factor * x.shape[1] if padding == "circular" else factor * (x.shape[1] - 1) + 1
    fine = fine[:, 8 * factor : 8 * factor + size]
    back = filtered(continued(fine, 3 * factor, padding), taps, "valid")
    return fine, back[:, ::factor]


@pytest.mark.parametrize("padding", MODES)
@pytest.mark.parametrize("factor", [2, 3])
def test_both_filters_are_those_of_signals_with_zeros_between(padding, factor):
    x, grid = RNG.standard_normal((2, 9, 3)), FineGrid(factor, padding)
    fine, back = slowly(x, factor, padding)
    y = grid.finer(jnp.asarray(x))
    np.testing.assert_allclose(y, fine, atol=1e-5)
    np.testing.assert_allclose(y[:, ::factor], x, atol=1e-6)
    np.testing.assert_allclose(grid.coarser(y), back, atol=1e-5)


def test_ideal_interpolation_continues_waves():
    def wave(positions):
        return np.cos(2 * np.pi * 3 * positions / 8 + 1)[None, :, None]

    grid = FineGrid(3, ideal=True)
    fine = grid.finer(jnp.asarray(wave(np.arange(8))))
    np.testing.assert_allclose(fine, wave(np.arange(24) / 3), atol=1e-5)
    np.testing.assert_allclose(grid.coarser(fine), wave(np.arange(8)), atol=1e-5)


def test_axes_are_filtered_one_after_the_other():
    x = jnp.asarray(RNG.standard_normal((2, 6, 7, 5, 3)), jnp.float32)
    for grid in (FineGrid(2), FineGrid(2, ideal=True)):
        y = x
        for axis in (1, 2, 3):
            signals = jnp.moveaxis(y, axis, 1)
            fine = grid.finer(signals.reshape(2, y.shape[axis], -1))
            y = jnp.moveaxis(fine.reshape(2, -1, *signals.shape[2:]), 1, axis)
        np.testing.assert_allclose(grid.finer(x), y, atol=1e-5)
        assert grid.coarser(y).shape == x.shape


@pytest.mark.parametrize("grid", [FineGrid(2), FineGrid(3, "circular"), FineGrid(2, ideal=True)])
def test_constants_stay(grid):
    x = jnp.ones((1, 5, 6, 2))
    np.testing.assert_allclose(grid.finer(x), 1, atol=1e-6)
    np.testing.assert_allclose(grid.coarser(grid.finer(x)), 1, atol=1e-6)


def test_a_map_smaller_than_the_filter_is_an_error():
    with pytest.raises(InputError, match="too small"):
        FineGrid(2).finer(jnp.ones((1, 3, 3, 2)))
