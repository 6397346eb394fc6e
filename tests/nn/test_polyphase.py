"""Pools that choose a phase: APS and LPS, and their inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError
from aa_flax.ops import blur_pool, circular_padding, max_pool
from aa_flax.pools import (
    AdaptivePool,
    LearnedPhasePool,
    decide,
    make_pool,
    pool_factory,
    subsample,
    upsample_phase,
)

NAMES = ("aps_l2", "aps_l1", "aps_linf", "aps_lpf3", "aps_lpf4", "lps", "lps_softmax")
SHIFTS = [(1, 0), (0, 1), (3, 2), (5, 7)]


def made(name, stride=2, **options):
    factory = pool_factory(None, name)
    pool = make_pool(factory, stride, features=3, rngs=nnx.Rngs(0), **options)
    pool.eval()
    return pool


def is_rolled(one, other) -> bool:
    """Checks whether a map is another one, moved circularly."""
    places = np.ndindex(*one.shape[:2])
    return min(np.abs(np.roll(one, place, (0, 1)) - other).max() for place in places) < 1e-5


@pytest.mark.parametrize("stride", [2, 3, (2, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_a_rolled_image_gives_the_rolled_map(name, stride, rng):
    pool = made(name, stride)
    x = jnp.asarray(rng.standard_normal((4, 12, 12, 3)), jnp.float32)
    with circular_padding():
        still = np.asarray(subsample(pool, x))
        for shift in SHIFTS:
            moved = np.asarray(subsample(pool, jnp.roll(x, shift, (1, 2))))
            assert all(map(is_rolled, still, moved))


@pytest.mark.parametrize("name", NAMES)
def test_subsampling_and_putting_back_moves_with_the_image_pixel_by_pixel(name, rng):
    pool = made(name)
    x = jnp.asarray(rng.standard_normal((4, 8, 12, 3)), jnp.float32)

    def there_and_back(x):
        choice = decide(pool, x)
        return pool.upsample(subsample(pool, x, choice), choice)

    with circular_padding():
        still = there_and_back(x)
        for shift in SHIFTS:
            moved = there_and_back(jnp.roll(x, shift, (1, 2)))
            np.testing.assert_allclose(moved, jnp.roll(still, shift, (1, 2)), atol=1e-5)


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1), ("linf", np.inf)])
def test_the_phase_of_the_largest_norm_is_chosen(norm, order, rng):
    x = rng.standard_normal((6, 8, 8, 3), np.float32)
    chosen = AdaptivePool(2, norm).choose(jnp.asarray(x))
    for image, choice in zip(x, chosen, strict=True):
        norms = [np.linalg.norm(image[i::2, j::2].ravel(), order) for i, j in np.ndindex(2, 2)]
        assert choice == np.argmax(norms)


def test_phases_of_the_same_largest_value_are_distinguished_by_their_squares(rng):
    """As after a max pool, which spreads the largest value over all phases."""
    pool = AdaptivePool(2, "linf")
    x = jnp.asarray(rng.standard_normal((4, 8, 8, 3)), jnp.float32)
    with circular_padding():
        still, moved = (max_pool(a, 2, stride=1) for a in (x, jnp.roll(x, (1, 1), (1, 2))))
        pairs = zip(subsample(pool, still), subsample(pool, moved), strict=True)
        assert all(is_rolled(np.asarray(one), np.asarray(other)) for one, other in pairs)


def test_with_a_filter_both_the_choice_and_the_values_are_blurred(rng):
    x = jnp.asarray(rng.standard_normal((6, 8, 8, 3)), jnp.float32)
    plain, filtered, blurred = AdaptivePool(2), AdaptivePool(2, filter_size=3), blur_pool(x, 3, 1)
    np.testing.assert_array_equal(filtered.choose(x), plain.choose(blurred))
    np.testing.assert_allclose(subsample(filtered, x), subsample(plain, blurred))


def test_putting_back_keeps_the_mean_after_a_filter(rng):
    y = jnp.asarray(rng.standard_normal((2, 4, 6, 3)), jnp.float32)
    choice = jnp.array([1, 2])
    bare = upsample_phase(y, choice)
    assert bare.shape == (2, 8, 12, 3)
    np.testing.assert_allclose(bare.sum((1, 2)), y.sum((1, 2)), rtol=1e-5)
    smooth = upsample_phase(y, choice, 2, 3, "circular", size=(8, 12))
    np.testing.assert_allclose(smooth.mean((1, 2)), y.mean((1, 2)), atol=1e-6)
    assert upsample_phase(y, choice, size=(7, 11)).shape == (2, 7, 11, 3)


def learned(training, *, train=True):
    pool = LearnedPhasePool(2, training=training, features=3, rngs=nnx.Rngs(0, dropout=1))
    (pool.train if train else pool.eval)()
    return pool


def test_in_training_one_phase_is_drawn_by_its_probability(rng):
    x = jnp.asarray(rng.standard_normal((1, 8, 8, 3)), jnp.float32)
    mixture = np.asarray(learned("softmax").choose(x))[0]
    np.testing.assert_allclose(mixture.sum(), 1, rtol=1e-6)
    drawn = np.asarray(learned("gumbel").choose(jnp.repeat(x, 4000, 0)))
    np.testing.assert_allclose(drawn.max(1), 1, rtol=1e-6)
    np.testing.assert_allclose(drawn.mean(0), mixture, atol=0.03)
    assert np.argmax(mixture) == learned("softmax", train=False).choose(x)[0]


def test_noise_is_another_at_each_call_and_none_in_evaluation(rng):
    x = jnp.asarray(rng.standard_normal((64, 8, 8, 3)), jnp.float32)
    pool = learned("gumbel")
    assert (pool.choose(x) != pool.choose(x)).any()
    pool.eval()
    np.testing.assert_array_equal(pool.choose(x), pool.choose(x))


def test_a_pool_that_follows_has_no_weights_and_takes_any_choice(rng):
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 5)), jnp.float32)
    follower = made("lps", follows=True)
    assert not jax.tree.leaves(nnx.state(follower))
    choice = jnp.array([3, 0])
    np.testing.assert_array_equal(subsample(follower, x, choice)[0], x[0, 1::2, 1::2])
    with pytest.raises(InputError, match="follows the choice of another, and was given none"):
        subsample(follower, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptivePool(2, "l3"), "norm must be one of l2, l1, linf; got 'l3'"),
        (lambda: AdaptivePool(0), "stride must be an integer of at least 1"),
        (lambda: AdaptivePool(2, filter_size=0), "filter_size must be an integer of at least 1"),
        (lambda: AdaptivePool(2, filter_size="auto"), "filter_size must be an integer of at least"),
        (lambda: learned("hard"), "training must be one of gumbel, softmax; got 'hard'"),
        (
            lambda: LearnedPhasePool(2, temperature=0, features=3, rngs=nnx.Rngs(0)),
            "temperature must be above 0, got 0",
        ),
        (
            lambda: upsample_phase(jnp.ones((1, 4, 4, 1)), jnp.array([0]), size=9),
            r"size \(9, 9\) is not possible for \(4, 4\)",
        ),
    ],
)
def test_what_is_no_option_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
