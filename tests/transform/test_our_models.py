"""Transformed plain models are the antialiased models with the same weights."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import antialias
from aa_flax.models.densenet import DenseNet
from aa_flax.models.mobilenet import MobileNetV2
from aa_flax.models.resnet import BasicBlock, Bottleneck, ResNet
from aa_flax.models.vgg import VGG
from aa_flax.ops import max_pool
from aa_flax.pools import subsample
from tests.randomised import randomised
from tests.transform.models import functional


class ResNetWithWindow3(ResNet):
    """Computes the antialiased stem with the plain model's max pool, not the original's."""

    def stem(self, x):
        if self.pool is None:
            return super().stem(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        return subsample(self.pool, max_pool(x, 3, stride=1, padding=1))


MODELS = {
    "vgg": partial(VGG, (1, 1, 1, 1, 1), batch_norm=True),
    "mobilenet": partial(MobileNetV2, width_mult=0.25, dropout=0.0),
    "densenet": partial(DenseNet, (2, 2, 2), growth_rate=4, num_init_features=8),
    "resnet": partial(ResNetWithWindow3, BasicBlock, (1, 1, 1, 1)),
    "bottleneck": partial(ResNetWithWindow3, Bottleneck, (1, 1, 1, 1)),
}


def pair(name, filter_size=4, **options):
    """Returns the plain model and its antialiased version with the same weights."""
    build = partial(MODELS[name], num_classes=0, **options)

    def abstract(size):
        return nnx.eval_shape(lambda: build(filter_size=size, rngs=nnx.Rngs(0)))

    models = [abstract(size) for size in (None, filter_size)]
    for model in models if name == "vgg" else ():
        model.fc1 = model.fc2 = None  # a hundred million parameters after the features
    plain, blurred = map(randomised, models)
    return plain, blurred


def images(size=64):
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32))


def relative_difference(a, b):
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=pytest.mark.slow if n in ("bottleneck", "densenet", "mobilenet", "vgg") else ()
        )
        for n in MODELS
    ],
)
def test_values_and_gradients_are_those_of_the_antialiased_model(name):
    plain, blurred = (functional(model) for model in pair(name))
    x, weights = images(), jax.random.normal
    assert jax.tree.structure(plain.state) == jax.tree.structure(blurred.state)

    def loss(f, state, x):
        y = f(state, x)[0]
        return (y * weights(jax.random.key(1), y.shape)).sum(), y

    def run(f):
        return jax.jit(jax.grad(partial(loss, f), (0, 1), has_aux=True))(plain.state, x)

    assert len(antialias.report(plain, plain.state, x).antialiased) >= 3
    found, expected = run(antialias(plain)), run(blurred)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale(b)), found, expected
    )


def scale(x):
    return 1e-30 + float(jnp.abs(x).max())


@pytest.mark.parametrize("name", ["densenet", "resnet"])
def test_training_uses_the_antialiased_models_statistics(name):
    plain, blurred = (functional(model, train=True) for model in pair(name))
    (y, state), (expected, expected_state) = (
        jax.jit(f)(plain.state, images()) for f in (antialias(plain), blurred)
    )
    assert relative_difference(y, expected) < 1e-5
    for path, mean in nnx.to_flat_state(state):
        if path[-1] == "mean":
            other = dict(nnx.to_flat_state(expected_state))[path]
            np.testing.assert_allclose(mean[...], other[...], atol=1e-5)


@pytest.mark.parametrize("filter_size", [1, 3, 7])
def test_every_filter_size_matches_the_antialiased_model(filter_size):
    plain, blurred = (functional(model) for model in pair("densenet", filter_size))
    expected, _ = jax.jit(blurred)(plain.state, images())
    weak = pytest.warns(UserWarning, match="filter_size=1 passes 100%")
    with weak if filter_size == 1 else nullcontext():
        found, _ = jax.jit(antialias(plain, filter_size))(plain.state, images())
    assert relative_difference(found, expected) < 1e-5


def test_half_precision_is_kept():
    plain, blurred = (functional(model) for model in pair("resnet", dtype=jnp.bfloat16))
    found, expected = (jax.jit(f)(plain.state, images())[0] for f in (antialias(plain), blurred))
    assert found.dtype == expected.dtype == jnp.bfloat16
    assert relative_difference(found.astype(jnp.float32), expected.astype(jnp.float32)) < 0.05


def test_an_antialiased_model_is_left_alone():
    _, blurred = (functional(model) for model in pair("resnet"))
    with pytest.warns(UserWarning, match="antialias changes nothing"):
        found = jax.jit(antialias(blurred))(blurred.state, images())[0]
    expected = jax.jit(blurred)(blurred.state, images())[0]
    assert relative_difference(found, expected) < 1e-5
