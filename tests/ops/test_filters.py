import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal

from aa_flax import InputError, ops
from aa_flax.ops.filters import filter_pool, gaussian_taps, kaiser_taps


@pytest.mark.parametrize("k", range(1, 9))
def test_gaussian_taps_are_scipys_window(k):
    sigma = 0.3 * ((k - 1) / 2 - 1) + 0.8
    expected = signal.windows.gaussian(k, sigma)
    np.testing.assert_allclose(gaussian_taps(k), expected / expected.sum())
    assert len(set(np.round(gaussian_taps(k, 1e3), 4))) == 1  # wide: a box


@pytest.mark.parametrize("k", range(2, 14))
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_kaiser_taps_are_scipys_design(k, stride):
    transition = 2 * (np.sqrt(2) - 1) / stride  # of the Nyquist frequency
    beta = signal.kaiser_beta(signal.kaiser_atten(k, transition))
    expected = signal.firwin(k, 1 / stride, window=("kaiser", beta))
    np.testing.assert_allclose(kaiser_taps(k, stride), expected, atol=1e-12)


def test_a_wide_kaiser_filter_passes_what_is_low_and_stops_what_is_high():
    frequencies, response = signal.freqz(kaiser_taps(31, 2), fs=1)
    assert np.abs(1 - np.abs(response[frequencies < 0.14])).max() < 0.01
    assert np.abs(response[frequencies > 0.36]).max() < 0.01


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "mirror"), ("circular", "wrap")])
def test_taps_of_each_axis_are_applied_with_its_padding(padding, mode, rng):
    x = rng.standard_normal((12, 10))
    expected = ndimage.correlate1d(x, kaiser_taps(5, 2), axis=0, mode=mode)
    expected = ndimage.correlate1d(expected, gaussian_taps(3), axis=1, mode=mode)[::2]
    given = jnp.asarray(x, jnp.float32)[None, ..., None]
    y = filter_pool(given, [kaiser_taps(5, 2), gaussian_taps(3)], (2, 1), padding)
    np.testing.assert_allclose(y[0, ..., 0], expected, atol=1e-6)
    with ops.definitions():
        defined = filter_pool(given, [kaiser_taps(5, 2), gaussian_taps(3)], (2, 1), padding)
    np.testing.assert_allclose(y, defined, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_taps(0), "filter_size must be an integer of at least 1, got 0"),
        (lambda: gaussian_taps(3, 0.0), "sigma must be above 0, got 0"),
        (lambda: kaiser_taps(3.0, 2), "filter_size must be an integer"),
        (lambda: kaiser_taps(3, 0), "stride must be an integer of at least 1, got 0"),
        (lambda: kaiser_taps(3, 2, -1), "beta must be a number of at least 0, got -1"),
        (lambda: filter_pool(jnp.ones((1, 8, 8, 1)), [(1.0,)], 2), "1 axes were given for 2"),
        (lambda: filter_pool(jnp.ones((1, 2, 1)), [(0.2,) * 5], 2), "5 taps, 2 pixels before"),
    ],
)
def test_what_is_no_filter_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
