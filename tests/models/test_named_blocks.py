import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.reference import abstract_model


@pytest.mark.parametrize("filter_size", ["", "_lpf4"])
@pytest.mark.parametrize("base", ["alexnet", "vgg11_bn", "resnet18", "densenet121", "mobilenet_v2"])
def test_the_blocks_in_order_are_the_features(base, filter_size):
    graph, state = nnx.split(abstract_model(base + filter_size))
    image = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)

    def features(state, x):
        return nnx.merge(graph, state).features(x)

    def blocks(state, x):
        for _, block in nnx.merge(graph, state).named_blocks():
            x = block(x)
        return x

    assert str(jax.make_jaxpr(blocks)(state, image)) == str(jax.make_jaxpr(features)(state, image))


def test_every_block_has_a_name_of_its_own():
    names = [name for name, _ in abstract_model("densenet121").named_blocks()]
    assert len(set(names)) == len(names) == 9
