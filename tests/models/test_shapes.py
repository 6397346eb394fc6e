"""Unsuitable images are refused in one line, by every model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError
from aa_flax.models.densenet import DenseNet
from aa_flax.models.shapes import check_images, smallest_size
from benchmarks.reference import abstract_model, logits_shape

SMALLEST = {
    "alexnet_lpf4": 95,
    "vgg11_lpf4": 64,
    "resnet18_lpf4": 35,
    "densenet121": 29,
    "densenet121_lpf4": 33,
    "mobilenet_v2_lpf4": 33,
    "alexnet": 63,
    "vgg11": 32,
    "mobilenet_v2": 1,
    "resnet18": 1,
}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(*item, marks=pytest.mark.slow if "densenet" in item[0] else ())
        for item in SMALLEST.items()
    ],
)
def test_the_smallest_image_is_found_and_a_smaller_one_names_model_block_and_size(name, size):
    model = abstract_model(name)
    assert smallest_size(model) == size
    assert logits_shape(model, size) == (1, 1000)
    if size > 1:
        message = f"{size - 1}x{size - 1} pixels are too small for {name}, .* {size}x{size} or more"
        with pytest.raises(InputError, match=f"{message}; in its block .*: .*needs at least"):
            logits_shape(model, size - 1)


def test_batch_norms_own_complaint_is_not_taken_for_the_size():
    model = abstract_model("resnet18")
    model.train()
    with pytest.raises(ValueError, match="more than one value for each channel") as error:
        logits_shape(model, 32)
    assert "too small" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 64, 64), np.float32), r"channels come last: x\.transpose\(0, 2, 3, 1\)"),
        (np.zeros((64, 64, 3), np.float32), r"one image needs a batch axis: x\[None\]"),
        (np.zeros((2, 64, 64, 1), np.float32), "repeat the grey channel"),
        (np.zeros((2, 64, 64, 4), np.float32), "give 3 channels"),
        (np.zeros((2, 64, 64, 3), np.uint8), "of uint8; convert and normalise them first"),
        (np.zeros((2, 64, 64, 3), np.int32), "of int32; convert and normalise"),
        (np.zeros((64, 64), np.float32), "give four axes"),
        ([[0.0]], "a list; give a JAX array"),
    ],
)
def test_the_error_for_other_arrays_describes_a_batch_of_images(images, message):
    expected = r"the model takes images \(N, H, W, 3\) of normalised floats, got .*"
    with pytest.raises(InputError, match=expected + message):
        check_images(images)


@pytest.mark.parametrize("base", ["alexnet", "vgg11", "resnet18", "densenet121", "mobilenet_v2"])
def test_every_model_refuses_images_of_another_order(base):
    graphdef, state = nnx.split(abstract_model(base))
    images = jax.ShapeDtypeStruct((1, 3, 224, 224), jnp.float32)
    with pytest.raises(InputError, match="channels come last"):
        jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, images)


def test_sizes_that_export_does_not_know_are_not_compared():
    batch, side, channels = jax.export.symbolic_shape("n, s, c")
    for shape in ((batch, side, side, 3), (batch, side, side, channels), (batch, 96, 96, 3)):
        jax.eval_shape(lambda x: check_images(x) or x, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_models_are_tabulated():
    model = DenseNet((1, 1), growth_rate=4, num_init_features=8, rngs=nnx.Rngs(0))
    model.eval()
    assert "DenseLayer" in nnx.tabulate(model, jnp.ones((1, 16, 16, 3)), depth=3)


@pytest.mark.parametrize("name", ["resnet18_lpf4", "mobilenet_v2_lpf4"])
def test_the_suggested_bound_of_an_open_size_can_be_exported(name):
    graphdef, state = nnx.split(abstract_model(name))

    def export(constraints=()):
        h, w = jax.export.symbolic_shape("h, w", constraints=constraints)
        image = jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)
        forward = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
        return jax.export.export(forward)(state, image)

    with pytest.raises(InputError, match="may be too small") as error:
        export()
    advised = re.findall(r"'([hw] >= \d+)'", str(error.value))
    assert len(advised) == 2
    assert export(advised).out_avals[0].shape == (1, 1000)
