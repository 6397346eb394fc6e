import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax.evaluation.shifts import shift_band_limited


def shift(image, down, right):
    return np.asarray(shift_band_limited(jnp.asarray(image)[None], jnp.array([[down, right]])))[0]


@pytest.mark.parametrize("shape", [(8, 6, 2), (7, 9, 2), (1, 2, 2)])
def test_an_integer_shift_is_a_roll(rng, shape):
    image = rng.standard_normal(shape, np.float32)
    expected = np.roll(image, (3, -2), (0, 1))
    np.testing.assert_allclose(shift(image, 3.0, -2.0), expected, atol=1e-5)


@pytest.mark.parametrize("size", [16, 15])
def test_a_wave_moves_by_any_fraction(size):
    place = np.arange(size)[:, None, None]

    def wave(d):
        return np.cos(2 * np.pi * 3 * (place - d) / size + 0.4) * np.ones((1, size, 1))

    np.testing.assert_allclose(shift(wave(0), 0.3, 0.7), wave(0.3), atol=1e-5)


def test_the_nyquist_frequency_is_multiplied_by_the_cosine():
    image = np.cos(np.pi * np.arange(8))[:, None, None] * np.ones((1, 8, 1))
    expected = np.cos(np.pi * 0.3) * image
    np.testing.assert_allclose(shift(image, 0.3, 0.0), expected, atol=1e-6)
    np.testing.assert_allclose(shift(image, 0.5, 0.0), 0, atol=1e-6)


def test_two_fractions_add_up_where_there_is_no_nyquist_frequency(rng):
    image = rng.standard_normal((9, 9, 3), np.float32)
    once = shift(image, 0.9, -0.5)
    np.testing.assert_allclose(shift(shift(image, 0.4, -0.3), 0.5, -0.2), once, atol=1e-5)


def test_each_image_moves_by_its_own_shift(rng):
    images = rng.standard_normal((3, 6, 6, 1), np.float32)
    shifts = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    moved = np.asarray(shift_band_limited(jnp.asarray(images), shifts))
    for image, (down, right), found in zip(images, shifts.astype(int), moved, strict=True):
        expected = np.roll(image, (int(down), int(right)), (0, 1))
        np.testing.assert_allclose(found, expected, atol=1e-5)
