"""The option `remat` in every family, by tracing where values are not needed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax.models.densenet import DenseNet
from aa_flax.models.registry import build
from aa_flax.models.remat import rematerialised
from aa_flax.models.vgg import VGG
from aa_flax.nn.layers import BatchNorm

MODELS = {
    "alexnet": partial(build, "alexnet_lpf4"),
    "vgg": partial(VGG, (1, 1, 1, 1, 1), batch_norm=True, filter_size=2),
    "resnet": partial(build, "resnet18_lpf2"),
    "densenet": partial(DenseNet, (2, 2), growth_rate=4, num_init_features=8, filter_size=2),
    "mobilenet": partial(build, "mobilenet_v2_lpf2", width_mult=0.25),
}


@pytest.mark.parametrize("family", MODELS)
def test_every_named_block_is_rematerialised_and_nothing_else(family):
    model = nnx.eval_shape(lambda: MODELS[family](num_classes=2, rngs=nnx.Rngs(0)))
    model.train()
    blocks = len(list(model.named_blocks()))
    assert count_of_remats(model) == 0
    model.remat = True
    assert count_of_remats(model) == blocks


def count_of_remats(model) -> int:
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, 96, 96, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda s, x: nnx.merge(graphdef, s, copy=True)(x))(state, images)
    return sum("remat" in str(equation.primitive) for equation in jaxpr.eqns)


class Block(nnx.Module):
    def __init__(self):
        self.norm = BatchNorm(2, rngs=nnx.Rngs(0))
        self.scale = nnx.Param(jnp.array(3.0))

    def __call__(self, x):
        return self.norm(jnp.sin(x * self.scale[...]))

    def method(self, x):
        return self(x)

    def forms(self):
        """Returns the same function, as every kind of callable that a block may be."""
        return {
            "module": self,
            "method": self.method,
            "lambda": lambda x: self.norm(jnp.sin(x * self.scale[...])),
            "default": lambda x, block=self: block(x),
            "partial": partial(lambda block, x, *, times: block(x * times), self, times=1.0),
        }


@pytest.mark.parametrize("form", Block().forms())
def test_a_block_of_any_kind_has_its_gradients_and_statistics(rng, form):
    x = jnp.asarray(rng.standard_normal((5, 2), np.float32))

    def gradients(wrap):
        graphdef, params, stats = nnx.split(Block(), nnx.Param, ...)

        def loss(params, x):
            block = nnx.merge(graphdef, params, stats, copy=True)
            return (wrap(block.forms()[form])(x) ** 3).sum(), nnx.state(block, nnx.BatchStat)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    expected, found = gradients(lambda block: block), gradients(rematerialised)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)
    assert np.abs(found[1]["norm"]["mean"][...]).max() > 0
