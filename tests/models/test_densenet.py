import antialiased_cnns.densenet
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax.models.densenet import DenseNet
from benchmarks.reference import (
    abstract_model,
    assert_same_as_reference,
    assert_same_model,
    randomised,
    state_shapes,
    torchvision,
)

NAMES = [f"densenet{depth}" for depth in (121, 161, 169, 201)]
SIZES = ((224, 224), (101, 75))
SMALL = {"block_config": (2, 3, 2, 2), "growth_rate": 8, "num_init_features": 16, "bn_size": 2}


def small_model(*, remat: bool = False, **options) -> DenseNet:
    model = DenseNet(**SMALL, num_classes=10, rngs=nnx.Rngs(0), **options)
    model.remat = remat
    model.eval()
    return model


@pytest.mark.parametrize(("k", "pool_only"), [(1, True), (3, True), (4, False), (7, True)])
def test_small_model_equals_the_original(k, pool_only):
    options = {"filter_size": k, "pool_only": pool_only}
    model = antialiased_cnns.densenet.DenseNet(**SMALL, num_classes=10, **options)
    assert_same_model(small_model(**options), randomised(model), (107, 75))


def test_small_baseline_equals_torchvision():
    model = torchvision.models.DenseNet(**SMALL, num_classes=10)
    assert_same_model(small_model(), randomised(model), (224, 224), (107, 75))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *(f"{name}_lpf4" for name in NAMES)])
def test_every_model_equals_torch(name):
    assert_same_as_reference(name, *SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 3, 5])
def test_every_published_filter_size_equals_the_original(k):
    assert_same_as_reference(f"densenet121_lpf{k}", *SIZES)


@pytest.mark.parametrize(
    "name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
def test_baseline_and_antialiased_have_the_same_state(name):
    assert state_shapes(abstract_model(name)) == state_shapes(abstract_model(f"{name}_lpf4"))


def training_step(model: DenseNet, x: np.ndarray):
    """Returns loss, batch statistics and gradients, and the bytes kept for the backward pass."""
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, rest, copy=True)
        return jnp.square(model(x)).mean(), nnx.state(model, nnx.BatchStat)

    kept = jax.eval_shape(lambda params: jax.vjp(loss, params, has_aux=True)[1], params)
    results = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return jax.tree.leaves(results), sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(kept))


@pytest.mark.slow  # tests/models/test_remat.py does not compile
def test_remat_keeps_less_and_changes_nothing(rng):
    x = rng.standard_normal((4, 64, 64, 3), np.float32)
    plain, plain_bytes = training_step(small_model(filter_size=3), x)
    remat, remat_bytes = training_step(small_model(filter_size=3, remat=True), x)
    for a, b in zip(plain, remat, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)
    assert remat_bytes < 0.7 * plain_bytes


def test_dropout_acts_in_training_only(rng):
    layer = small_model(drop_rate=0.5).blocks[0][0]
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 16), np.float32))
    assert layer([x]).all()
    layer.train()
    assert 0.3 < (layer([x]) == 0).mean() < 0.7


def test_initial_weights_are_those_of_torch():
    model = DenseNet((1, 1), rngs=nnx.Rngs(0))
    kernel = model.blocks[0][0].conv2.kernel[...]
    np.testing.assert_allclose(kernel.std(), (2 / (128 * 9)) ** 0.5, rtol=0.02)
    assert not model.classifier.bias[...].any()
