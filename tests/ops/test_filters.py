import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal

from aa_flax import InputError, ops
from aa_flax.ops.filters import filter_pool, gaussian_taps, ideal_pool, kaiser_taps


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


def by_fft(x: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Crops the spectrum, and transforms back."""
    spectrum = np.moveaxis(np.fft.fft(x, axis=axis), axis, 0)
    kept = np.zeros((length, *spectrum.shape[1:]), complex)
    for f in range(-((length - 1) // 2), (length - 1) // 2 + 1):
        kept[f] = spectrum[f]
    back = np.fft.ifft(kept, axis=0).real * length / x.shape[axis]
    return np.moveaxis(back, 0, axis)


@pytest.mark.parametrize("size", [(16,), (12, 9), (8, 7, 10)])
@pytest.mark.parametrize("stride", [2, 3])
def test_the_ideal_pool_crops_the_spectrum(size, stride, rng):
    x = rng.standard_normal((2, *size, 3))
    expected = x
    for axis, n in enumerate(size, 1):
        expected = by_fft(expected, -(-n // stride), axis)
    np.testing.assert_allclose(ideal_pool(jnp.asarray(x, jnp.float32), stride), expected, atol=1e-6)


def wave(places: np.ndarray, coefficients: np.ndarray, period: int) -> np.ndarray:
    """Returns cosines and sines of the first integer frequencies, at real positions."""
    phase = 2 * np.pi * np.outer(places, np.arange(len(coefficients))) / period
    return np.cos(phase) @ coefficients[:, 0] + np.sin(phase) @ coefficients[:, 1]


@pytest.mark.parametrize("shift", [0, 1, 0.3])
def test_band_limited_signals_are_sampled_exactly_wherever_they_lie(shift, rng):
    coefficients = rng.standard_normal((6, 2))  # frequencies 0 to 5, of at most 24 / 2 / 2 - 1
    x = wave(np.arange(24) - shift, coefficients, 24)
    y = ideal_pool(jnp.asarray(x, jnp.float32)[None, :, None], 2)[0, :, 0]
    np.testing.assert_allclose(y, wave(np.arange(0, 24, 2) - shift, coefficients, 24), atol=1e-5)


def test_every_shift_commutes_by_parts_of_a_pixel(rng):
    """Moving a map by a pixel moves the result by half a pixel, also without a band limit."""
    x = jnp.asarray(rng.standard_normal((1, 24, 2)), jnp.float32)
    y, moved = ideal_pool(x), ideal_pool(jnp.roll(x, 1, 1))
    turn = np.exp(-2j * np.pi * np.fft.fftfreq(12) / 2)[:, None]
    expected = np.fft.ifft(np.fft.fft(y[0], axis=0) * turn, axis=0).real
    np.testing.assert_allclose(moved[0], expected, atol=1e-5)


def test_what_the_grid_cannot_hold_is_gone():
    checks = jnp.asarray((-1.0) ** np.arange(16))[None, :, None]
    np.testing.assert_allclose(ideal_pool(checks), 0, atol=1e-6)


def test_an_axis_of_stride_1_stays_as_it_is(rng):
    x = jnp.asarray(rng.standard_normal((1, 6, 8, 2)), jnp.float32)
    rows = jax.vmap(lambda row: ideal_pool(row, 2), in_axes=1, out_axes=1)(x)
    np.testing.assert_allclose(ideal_pool(x, (1, 2)), rows, atol=1e-6)
    with pytest.raises(InputError, match="3 entries for 2 spatial axes"):
        ideal_pool(x, (1, 2, 3))
