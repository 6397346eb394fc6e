import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import create_model
from aa_flax.models.vgg import VGG
from aa_flax.nn.initializers import initialised
from benchmarks.reference import (
    abstract_model,
    assert_same_as_reference,
    compiled,
    state_shapes,
)

NAMES = [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
SIZES = ((224, 224), (101, 75))


@pytest.mark.slow  # the golden logits of vgg11_bn are not slow
def test_logits_equal_torch():
    assert_same_as_reference("vgg11_bn_lpf4", *SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *(f"{name}_lpf4" for name in NAMES)])
def test_every_model_equals_torch(name):
    assert_same_as_reference(name, *SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_every_published_filter_size_equals_the_original(name, k):
    assert_same_as_reference(f"{name}_lpf{k}", *SIZES)


def test_filter_size_1_is_the_baseline(rng):
    baseline = create_model("vgg11", num_classes=10)
    antialiased = create_model("vgg11_lpf1", num_classes=10, rngs=nnx.Rngs(1))
    nnx.update(antialiased, nnx.state(baseline))
    x = jnp.asarray(rng.standard_normal((1, 64, 64, 3), np.float32))
    np.testing.assert_allclose(
        compiled(antialiased)(x), compiled(baseline)(x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_baseline_and_antialiased_have_the_same_state(name):
    assert state_shapes(abstract_model(name)) == state_shapes(abstract_model(f"{name}_lpf4"))


def test_initial_weights_are_those_of_torch():
    model = initialised(lambda rngs: VGG((1,) * 5, num_classes=10, rngs=rngs), nnx.Rngs(0))
    block = model.stages[0][0]
    np.testing.assert_allclose(block.conv.kernel[...].std(), (2 / (64 * 9)) ** 0.5, rtol=0.05)
    np.testing.assert_allclose(model.fc1.kernel[...].std(), 0.01, rtol=0.01)
    assert not block.conv.bias[...].any()
    assert not model.fc1.bias[...].any()
