from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError
from aa_flax.nn.pool_registry import (
    binomial_size,
    decide,
    list_pools,
    make_pool,
    pool_factory,
    register_pool,
    subsample,
)
from tests.nn.toys import LargestPhase, WeightedBox, box


def made(pool, stride=2, features=4):
    return make_pool(pool_factory(None, pool), stride, features=features, rngs=nnx.Rngs(0))


def test_binomial_pools_are_blur_pools_of_that_many_taps(rng):
    x = jnp.asarray(rng.standard_normal((1, 9, 8, 4), np.float32))
    assert [binomial_size(made(f"binomial{k}")) for k in range(1, 8)] == list(range(1, 8))
    by_size = make_pool(pool_factory(3), 2, features=4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(made("binomial3")(x), by_size(x))


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("name", list_pools())
def test_every_pool_keeps_a_constant_and_has_the_size_of_blur_pool(name, stride):
    pool = make_pool(pool_factory(None, name), stride, features=3, rngs=nnx.Rngs(0))
    y = subsample(pool, np.full((1, 8, 12, 3), 2.5, np.float32))
    assert y.shape == (1, 8 // stride, 12 // stride, 3)
    assert np.allclose(y, 2.5)


def test_a_registered_pool_is_made_by_name_and_a_factory_without_one():
    register_pool("box of the tests", box, replace=True)
    assert "box of the tests" in list_pools()
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    for pool in ("box of the tests", box):
        np.testing.assert_array_equal(made(pool)(x)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])
    assert binomial_size(made(box)) is None


@pytest.mark.parametrize("name", ["gaussian11", "kaiser4", "learned2", "aps_lpf4", "binomial9"])
def test_a_number_of_taps_that_is_not_listed_is_made_too(name):
    assert name not in list_pools()
    y = subsample(made(name), np.full((1, 24, 24, 4), 2.5, np.float32))
    np.testing.assert_allclose(y, np.full((1, 12, 12, 4), 2.5), rtol=1e-5)


def test_a_custom_family_is_given_the_number_and_the_stride():
    def numbered(k, stride):
        return partial(np.full, (k, stride))

    for _ in range(2):
        register_pool("numbered of the tests<k>", numbered, widths=(2, 3), replace=True)
    assert {"numbered of the tests2", "numbered of the tests3"} <= set(list_pools())
    assert made("numbered of the tests12")(5).shape == (12, 2)


def test_a_factory_that_names_them_is_given_features_and_random_keys():
    assert made(WeightedBox, features=7).scale.shape == (7,)


def test_stride_1_and_baselines_need_no_pool():
    assert made(box, stride=1) is None
    assert make_pool(pool_factory(None), 2, features=4, rngs=nnx.Rngs(0)) is None


@pytest.mark.parametrize("shift", [0, 1])
def test_a_choice_follows_the_image_and_serves_another_map(rng, shift):
    pool = LargestPhase(2)
    x = jnp.asarray(rng.standard_normal((1, 8, 8, 3), np.float32))
    other = jnp.asarray(rng.standard_normal((1, 8, 8, 5), np.float32))
    moved, other_moved = (jnp.roll(a, (shift, shift), (1, 2)) for a in (x, other))
    still = subsample(pool, other, decide(pool, x))
    after = subsample(pool, other_moved, decide(pool, moved))
    np.testing.assert_allclose(np.sort(still, axis=None), np.sort(after, axis=None))
    np.testing.assert_array_equal(subsample(pool, x), pool(x, pool.choose(x)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pool_factory(4, box), "exclude each other"),
        (lambda: pool_factory(None, "binomal3"), "unknown pool 'binomal3'; did you mean binomial3"),
        (lambda: pool_factory(None, 3), "registered name .* or a function of the stride"),
        (lambda: pool_factory(True), "filter_size must be an integer of at least 1, got True"),
        (lambda: made(lambda stride: stride), "made 2 for stride 2, not a module"),
        (lambda: register_pool("binomial3", box), "already"),
        (
            lambda: register_pool("gaussian9", box),
            "'gaussian9' already, one of 'gaussian<k>'",
        ),
        (lambda: register_pool("gaussian<k>", box, widths=(3,)), "already"),
        (lambda: register_pool("mine<k>", box), "widths go with a name that ends in <k>"),
        (lambda: register_pool("mine", box, widths=(3,)), "widths go with a name"),
        (lambda: pool_factory(None, "gaussian<k>"), "unknown pool 'gaussian<k>'; did you mean"),
        (lambda: pool_factory(None, "gaussian0"), "unknown pool 'gaussian0'"),
        (lambda: pool_factory(None, "ideal3"), "unknown pool 'ideal3'; did you mean ideal"),
        (lambda: register_pool("", box), "non-empty"),
        (lambda: register_pool("none", None), "function of the stride"),
    ],
)
def test_what_is_no_pool_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
