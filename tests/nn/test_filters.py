import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax import InputError
from aa_flax.ops import avg_pool, blur_pool, circular_padding
from aa_flax.ops.filters import kaiser_taps
from aa_flax.pools import AveragePool, GaussianPool, IdealPool, KaiserPool, LearnedPool


def impulse_response(pool, size=16):
    x = jnp.zeros((1, size, size, 1)).at[0, 8, 8, 0].set(1)
    return np.asarray(pool(x))[0, ..., 0]


@pytest.mark.parametrize("window", [2, 3])
def test_the_average_pool_is_torchs_where_the_stride_divides(window, rng):
    x = jnp.asarray(rng.standard_normal((2, 6, 12, 3)), jnp.float32)
    np.testing.assert_allclose(AveragePool(window)(x), avg_pool(x, window), atol=1e-6)
    if window == 2:
        np.testing.assert_allclose(AveragePool(2)(x), blur_pool(x, 2), atol=1e-6)


def test_a_gaussian_as_wide_as_a_binomial_is_nearly_one(rng):
    x = jnp.asarray(rng.standard_normal((1, 32, 32, 2)), jnp.float32)
    np.testing.assert_allclose(GaussianPool(9, sigma=2**0.5)(x), blur_pool(x, 9), atol=0.05)


def test_kaisers_cut_off_follows_the_stride_of_each_axis():
    response = impulse_response(KaiserPool(7, (1, 1)))
    np.testing.assert_allclose(response.sum(), 1, rtol=1e-6)
    by_axis = KaiserPool(7, (2, 4))
    assert by_axis.taps == (kaiser_taps(7, 2), kaiser_taps(7, 4))
    assert by_axis(jnp.ones((1, 16, 16, 1))).shape == (1, 8, 4, 1)


def test_maps_have_one_to_three_axes():
    for pool in (GaussianPool(3), KaiserPool(5), AveragePool(), IdealPool()):
        for dims in (1, 2, 3):
            y = pool(jnp.ones((1, *[8] * dims, 2)))
            np.testing.assert_allclose(y, np.ones((1, *[4] * dims, 2)), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianPool(0), "filter_size must be an integer of at least 1"),
        (lambda: GaussianPool(3, 0), "stride must be an integer of at least 1"),
        (lambda: GaussianPool(3, padding="mirror"), "padding must be one of"),
        (lambda: KaiserPool(3, 2, beta=-1), "beta must be"),
        (lambda: KaiserPool(3, 2, "mirror"), "padding must be one of"),
        (lambda: AveragePool(1.5), "stride must be an integer"),
        (lambda: IdealPool(0), "stride must be an integer of at least 1"),
        (lambda: AveragePool()(jnp.ones((4, 4))), "1 to 3 spatial axes"),
    ],
)
def test_what_is_no_option_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("k", [1, 3, 4, 5])
@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero", "circular"])
def test_an_untrained_learned_pool_is_blur_pool(k, padding, rng):
    x = jnp.asarray(rng.standard_normal((2, 9, 8, 3)), jnp.float32)
    pool = LearnedPool(k, 2, padding, features=3)
    np.testing.assert_allclose(pool(x), blur_pool(x, k, 2, padding), atol=1e-6)
    with circular_padding():
        np.testing.assert_allclose(pool(x), blur_pool(x, k, 2, "circular"), atol=1e-6)


def test_trained_each_learned_filter_sums_to_one_and_acts_on_its_channel(rng):
    pool = LearnedPool(3, 2, "circular", features=2)
    pool.logits[...] = jnp.asarray(rng.standard_normal(pool.logits.shape), jnp.float32)
    np.testing.assert_allclose(pool.kernel.sum((0, 1)), 1, rtol=1e-6)
    x = rng.standard_normal((1, 6, 6, 2)).astype(np.float32)
    expected = sum(
        np.roll(x, (1 - i, 1 - j), (1, 2))[:, ::2, ::2] * np.asarray(pool.kernel[i, j, 0])
        for i, j in np.ndindex(3, 3)
    )
    np.testing.assert_allclose(pool(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LearnedPool((3, 4), 2, features=2), "square: give one filter_size and one stride"),
        (lambda: LearnedPool(0, 2, features=2), "filter_size must be an integer of at least 1"),
        (lambda: LearnedPool(3, features=2)(jnp.ones((1, 8, 2))), r"maps \(N, H, W, C\)"),
        (lambda: LearnedPool(5, features=2)(jnp.ones((1, 2, 8, 2))), "at least 3 pixels"),
    ],
)
def test_maps_and_options_of_a_learned_pool_are_checked(call, message):
    with pytest.raises(InputError, match=message):
        call()
