"""Models for images as small as CIFAR's."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from aa_flax.models.shapes import smallest_size
from benchmarks.reference import abstract_model, logits_shape, state_shapes
from tests.sweeps import slow_but

# Ratio of the sizes of the image and the last map.
REDUCTIONS = {"resnet18": 8, "resnet50": 8, "densenet121": 8, "mobilenet_v2": 16}


@pytest.mark.parametrize("base", REDUCTIONS)
@pytest.mark.parametrize(
    "ending", slow_but(("", "_lpf4", "_lpf7"), ("", *(f"_lpf{k}" for k in range(1, 8))))
)
def test_small_stems_take_32_pixels_with_every_filter_size(base, ending):
    if base == "densenet121" and ending not in ("", "_lpf4", "_lpf7"):
        pytest.skip("as with 7 taps, the most; it takes seconds to trace")
    model = abstract_model(base + ending, stem="small")
    graphdef, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    features = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s).forward_features(x), state, image)
    assert features.shape[1] == 32 // REDUCTIONS[base]


@pytest.mark.parametrize(("name", "size"), [("resnet18_lpf7", 13), ("mobilenet_v2_lpf7", 25)])
def test_how_small_is_too_small_is_known(name, size):
    model = abstract_model(name, stem="small")
    assert smallest_size(model) == size
    assert logits_shape(model, size) == (1, 1000)


@pytest.mark.parametrize("base", ["resnet18", "mobilenet_v2"])
def test_a_baseline_and_its_antialiased_model_share_a_state_tree_here_too(base):
    plain, antialiased = (abstract_model(n, stem="small") for n in (base, f"{base}_lpf4"))
    assert state_shapes(plain) == state_shapes(antialiased)
    first = plain.conv1 if base == "resnet18" else plain.stem.conv
    assert first.kernel.shape[:2] == (3, 3)
