"""Weights of nets with other pools: kept, found again, and never taken for another net's."""

from functools import partial

import numpy as np
import pytest
from flax import nnx

from aa_flax import BlurPool, InputError, create_model, load_weights, register_model, save_weights
from aa_flax.models.densenet import DenseNet
from aa_flax.weights.fit import named_weights

tiny = partial(DenseNet, (1, 1), growth_rate=4, num_init_features=8)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    register_model("tiny_of_pools", tiny, replace=True)


def made(pool, seed=0, **options):
    rngs = nnx.Rngs(seed)
    return create_model("tiny_of_pools", pool=pool, num_classes=3, rngs=rngs, **options)


@pytest.mark.parametrize("pool", ["learned3", "lps", "aps_l2"])
def test_a_net_with_a_pool_is_saved_and_loaded_with_its_weights(pool, tmp_path):
    model = made(pool)
    save_weights(model, tmp_path / "mine.safetensors")
    again = made(pool, seed=1, pretrained=tmp_path / "mine.safetensors")
    by_hand = load_weights(made(pool, seed=1), tmp_path / "mine.safetensors")
    for name, variable in named_weights(model).items():
        np.testing.assert_array_equal(named_weights(again)[name], variable)
        np.testing.assert_array_equal(named_weights(by_hand)[name], variable)
    assert any("pool" in name for name in named_weights(model)) == (pool != "aps_l2")


def test_weights_of_one_pool_are_refused_by_a_net_with_another(tmp_path):
    save_weights(made("gaussian5"), tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match="pool='gaussian5', this net has pool='gaussian7'"):
        load_weights(made("gaussian7"), tmp_path / "mine.safetensors")


def nameless():
    return lambda stride: BlurPool(3, stride)


@pytest.mark.parametrize(
    "pool",
    [lambda stride: BlurPool(5, stride), nameless(), partial(lambda k, s: BlurPool(k, s), 3)],
)
def test_a_pool_without_a_name_is_not_stored_under_one_that_others_have(pool, tmp_path):
    model = made(pool)  # usable all the same
    with pytest.raises(InputError, match=r"mine.*pool=.* without a name of its own.*register"):
        save_weights(model, tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_that_names_a_lambda_is_refused(tmp_path):
    """As files of before do."""
    model = made(lambda stride: BlurPool(5, stride))
    options = '{"pool": "tests.<lambda>"}'
    save_weights(made("binomial5"), tmp_path / "old.safetensors", options=options)
    with pytest.raises(InputError, match=r"old.safetensors: pool='tests.<lambda>' is a function"):
        load_weights(model, tmp_path / "old.safetensors")
