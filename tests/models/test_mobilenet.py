import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import create_model
from aa_flax.models.mobilenet import MobileNetV2
from aa_flax.nn.initializers import abstract, initialised
from benchmarks.reference import (
    abstract_model,
    assert_same_as_reference,
    compiled,
    state_shapes,
)
from tests.sweeps import slow_but

SIZES = ((224, 224), (101, 75))


@pytest.mark.parametrize(
    "name", slow_but(["mobilenet_v2_lpf4"], ["mobilenet_v2", "mobilenet_v2_lpf4"])
)
def test_logits_equal_torch(name):
    assert_same_as_reference(name, *SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 7])
def test_every_filter_size_equals_the_original(k):
    assert_same_as_reference(f"mobilenet_v2_lpf{k}", *SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("width_mult", [0.35, 1.4])
def test_widths_equal_the_original(width_mult):
    assert_same_as_reference("mobilenet_v2_lpf4", *SIZES, width_mult=width_mult)


def test_filter_size_1_is_the_baseline(rng):
    baseline = create_model("mobilenet_v2", num_classes=10)
    antialiased = create_model("mobilenet_v2_lpf1", num_classes=10, rngs=nnx.Rngs(1))
    nnx.update(antialiased, nnx.state(baseline, (nnx.Param, nnx.BatchStat)))
    x = jnp.asarray(rng.standard_normal((1, 64, 64, 3), np.float32))
    np.testing.assert_allclose(
        compiled(antialiased)(x), compiled(baseline)(x), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("width_mult", [1.0, 0.75])
def test_baseline_and_antialiased_have_the_same_state(width_mult):
    options = {"width_mult": width_mult, "dropout": 0.2}
    antialiased = abstract_model("mobilenet_v2_lpf4", **options)
    assert state_shapes(abstract_model("mobilenet_v2", **options)) == state_shapes(antialiased)


def test_only_the_baseline_drops_out():
    baseline = abstract(lambda rngs: MobileNetV2(rngs=rngs))
    assert baseline.dropout.rate == 0.2
    assert not baseline.dropout.deterministic
    baseline.eval()
    assert baseline.dropout.deterministic
    assert abstract(lambda rngs: MobileNetV2(filter_size=4, rngs=rngs)).dropout.rate == 0


def test_initial_weights_are_those_of_torch():
    model = initialised(lambda rngs: MobileNetV2(filter_size=4, rngs=rngs), nnx.Rngs(0))
    depthwise = model.blocks[1].depthwise.conv.kernel[...]
    np.testing.assert_allclose(depthwise.std(), (2 / (96 * 9)) ** 0.5, rtol=0.1)
    np.testing.assert_allclose(model.classifier.kernel[...].std(), 0.01, rtol=0.01)
    assert not model.classifier.bias[...].any()
