import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import create_model
from aa_flax.models.alexnet import AlexNet
from aa_flax.nn.initializers import initialised
from benchmarks.reference import (
    abstract_model,
    assert_same_as_reference,
    state_shapes,
)
from tests.compiled import run
from tests.sweeps import slow_but

SIZES = ((224, 224), (151, 143))


@pytest.mark.parametrize("name", slow_but(["alexnet_lpf4"], ["alexnet", "alexnet_lpf4"]))
def test_logits_equal_torch(name):
    assert_same_as_reference(name, *SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 7])
def test_every_filter_size_equals_the_original(k):
    assert_same_as_reference(f"alexnet_lpf{k}", *SIZES)


@pytest.mark.parametrize("options", [{"relu_first": False}, {"pool_only": True}])
def test_options_equal_the_original(options):
    assert_same_as_reference("alexnet_lpf4", *SIZES, **options)


def test_filter_size_1_is_the_baseline(rng):
    baseline = create_model("alexnet", num_classes=10)
    antialiased = create_model("alexnet_lpf1", num_classes=10, rngs=nnx.Rngs(1))
    nnx.update(antialiased, nnx.state(baseline))
    x = jnp.asarray(rng.standard_normal((2, 130, 130, 3), np.float32))
    np.testing.assert_allclose(run(antialiased, x), run(baseline, x), rtol=1e-5, atol=1e-6)


def test_baseline_and_antialiased_have_the_same_state():
    expected = state_shapes(abstract_model("alexnet"))
    for options in ({}, {"relu_first": False}, {"pool_only": True}):
        assert state_shapes(abstract_model("alexnet_lpf4", **options)) == expected


def test_dropout_acts_in_training_only(rng):
    model = create_model("alexnet_lpf4", num_classes=10)
    x = jnp.asarray(rng.standard_normal((2, 95, 95, 3), np.float32))
    np.testing.assert_array_equal(model(x), model(x))
    model.train()
    assert not np.allclose(model(x), model(x))


def test_initial_weights_have_torch_bounds():
    model = initialised(lambda rngs: AlexNet(num_classes=10, rngs=rngs), nnx.Rngs(0))
    for layer, fan_in in ((model.conv1, 3 * 11 * 11), (model.fc1, 9216), (model.fc2, 4096)):
        for variable in (layer.kernel, layer.bias):
            largest = float(jnp.abs(variable[...]).max())
            assert 0.9 * fan_in**-0.5 < largest <= 1.0001 * fan_in**-0.5


def test_baseline_has_no_antialiasing_options():
    with pytest.raises(ValueError, match="filter_size"):
        create_model("alexnet", pool_only=True)
