"""Models with phase-choosing pools for all strides are 100 % consistent without training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax.models.densenet import DenseNet
from aa_flax.models.resnet import BasicBlock, Bottleneck, ResNet
from aa_flax.ops import circular_padding
from tests.compiled import run

SHIFTS = [(1, 0), (13, 6), (31, 17)]


def residual(block, pool):
    return ResNet(block, (1, 1, 1, 1), num_classes=3, pool=pool, pool_only=False, rngs=nnx.Rngs(0))


def dense(pool):
    options = {"growth_rate": 4, "num_init_features": 8, "num_classes": 3}
    return DenseNet((1, 1, 1, 1), pool=pool, pool_only=False, rngs=nnx.Rngs(0), **options)


MODELS = {
    "basic blocks, l2": lambda: residual(BasicBlock, "aps_l2"),
    "bottlenecks, learned": lambda: residual(Bottleneck, "lps"),
    "dense, linf": lambda: dense("aps_linf"),
    "dense, behind filters": lambda: dense("aps_lpf3"),
}
QUICK = ("basic blocks, l2", "dense, behind filters")


def is_rolled(one, other, tolerance) -> bool:
    places = np.ndindex(*one.shape[:2])
    return min(np.abs(np.roll(one, p, (0, 1)) - other).max() for p in places) < tolerance


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS],
)
def test_a_rolled_image_gives_the_rolled_features_and_the_same_logits(name, rng):
    model = MODELS[name]()
    model.eval()
    graph, state = nnx.split(model)
    x = jnp.asarray(rng.standard_normal((2, 64, 64, 3)), jnp.float32)

    @jax.jit
    def run(state, x):
        model = nnx.merge(graph, state)
        return model.forward_features(x), model(x)

    with circular_padding():
        features, logits = map(np.asarray, run(state, x))
        for shift in SHIFTS:
            moved, moved_logits = map(np.asarray, run(state, jnp.roll(x, shift, (1, 2))))
            np.testing.assert_allclose(moved_logits, logits, atol=1e-4 * np.abs(logits).max())
            assert features.shape[1:3] == (2, 2)
            tolerance = 1e-4 * np.abs(features).max()
            for one, other in zip(features, moved, strict=True):
                assert is_rolled(one, other, tolerance)


def test_blur_pool_is_not_exact(rng):
    model = dense("binomial3")
    model.eval()
    x = jnp.asarray(rng.standard_normal((2, 64, 64, 3)), jnp.float32)
    with circular_padding():
        difference = jnp.abs(run(model, jnp.roll(x, 1, 1)) - run(model, x)).max()
    assert difference > 1e-3
