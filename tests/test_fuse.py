"""A fused net is the same function, whatever the family, and no net to go on with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax import InputError, create_model, fuse
from aa_flax.layers import BatchNorm, Folded, conv2d
from aa_flax.models.densenet import DenseNet
from aa_flax.models.resnet import BasicBlock, Bottleneck, ResNet


def randomised(net: aa_flax.Classifier) -> aa_flax.Classifier:
    """With statistics and affine parameters that show where they are left out."""
    draw = np.random.default_rng(0)
    for _, layer in nnx.iter_modules(net):
        if isinstance(layer, BatchNorm):
            for name, low in (("scale", 0.5), ("bias", -0.3), ("mean", -0.3), ("var", 0.5)):
                shape = layer.scale.shape
                getattr(layer, name)[...] = jnp.asarray(draw.uniform(low, 1.5, shape), jnp.float32)
    net.eval()
    return net


def folded(net: aa_flax.Classifier) -> int:
    return sum(isinstance(layer, Folded) for _, layer in nnx.iter_modules(net))


def small_resnet(block, **options) -> ResNet:
    return ResNet(block, (1, 1, 1, 1), num_classes=5, rngs=nnx.Rngs(0), **options)


NETS = {
    "alexnet": lambda **o: create_model("alexnet_lpf3", num_classes=5, **o),
    "vgg": lambda **o: create_model("vgg11_lpf2", num_classes=5, **o),
    "vgg_bn": lambda **o: create_model("vgg11_bn_lpf4", num_classes=5, **o),
    "basic": lambda **o: small_resnet(BasicBlock, filter_size=4, **o),
    "bottleneck": lambda **o: small_resnet(Bottleneck, filter_size=3, groups=8, **o),
    "baseline": lambda **o: small_resnet(BasicBlock, **o),
    "densenet": lambda **o: DenseNet((2, 1), filter_size=4, num_classes=5, rngs=nnx.Rngs(0), **o),
    "mobilenet": lambda **o: create_model("mobilenet_v2_lpf4", num_classes=5, **o),
}
# stem, two or three a block, three or four shortcuts; DenseNet's stem and norm2 alone; 52 in all
FOLDED = {"alexnet": 0, "vgg": 0, "vgg_bn": 8, "basic": 12, "bottleneck": 17, "baseline": 12}
FOLDED |= {"densenet": 4, "mobilenet": 52}


def logits(net, x):
    graph, state = nnx.split(net)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)


@pytest.mark.parametrize("name", [n for n in NETS if n not in ("alexnet", "vgg")])
def test_logits_are_the_same(name, rng):
    x = jnp.asarray(rng.standard_normal((1, 96, 96, 3)), jnp.float32)
    net = randomised(NETS[name]())
    fused = fuse(net)
    assert folded(fused) == FOLDED[name]
    assert folded(net) == 0
    expected = logits(net, x)
    difference = jnp.abs(logits(fused, x) - expected).max() / jnp.abs(expected).max()
    assert difference <= 1e-5


@pytest.mark.parametrize("name", ["alexnet", "vgg"])
def test_a_net_without_batch_norm_stays_as_it_is(name):
    net = nnx.eval_shape(NETS[name])
    assert jax.tree.structure(nnx.state(fuse(net))) == jax.tree.structure(nnx.state(net))
