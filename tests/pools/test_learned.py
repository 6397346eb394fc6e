import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax import InputError, blur_pool
from aa_flax.ops import circular_padding
from aa_flax.pools import LearnedPool


@pytest.mark.parametrize("k", [1, 3, 4, 5])
@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero", "circular"])
def test_untrained_it_is_blur_pool(k, padding, rng):
    x = jnp.asarray(rng.standard_normal((2, 9, 8, 3)), jnp.float32)
    pool = LearnedPool(k, 2, padding, features=3)
    np.testing.assert_allclose(pool(x), blur_pool(x, k, 2, padding), atol=1e-6)
    with circular_padding():
        np.testing.assert_allclose(pool(x), blur_pool(x, k, 2, "circular"), atol=1e-6)


def test_trained_each_filter_sums_to_one_and_acts_on_its_channel(rng):
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
        (lambda: LearnedPool(0, 2, features=2), "filter_size must be at least 1"),
        (lambda: LearnedPool(3, features=2)(jnp.ones((1, 8, 2))), r"maps \(N, H, W, C\)"),
        (lambda: LearnedPool(5, features=2)(jnp.ones((1, 2, 8, 2))), "at least 3 pixels"),
    ],
)
def test_what_it_does_not_take_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
