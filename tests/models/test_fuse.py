"""A fused model is the same function, in every family, and is for inference only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax import InputError, create_model, fuse
from aa_flax.models.densenet import DenseNet
from aa_flax.models.resnet import BasicBlock, Bottleneck, ResNet
from aa_flax.nn.layers import BatchNorm, Folded, conv2d
from tests.compiled import run as logits
from tests.randomised import randomised
from tests.sweeps import slow_but


def folded(model: aa_flax.Classifier) -> int:
    return sum(isinstance(layer, Folded) for _, layer in nnx.iter_modules(model))


def small_resnet(block, **options) -> ResNet:
    """Returns an abstract model, without values."""
    return nnx.eval_shape(
        lambda: ResNet(block, (1, 1, 1, 1), num_classes=5, rngs=nnx.Rngs(0), **options)
    )


MODELS = {
    "alexnet": lambda **o: create_model("alexnet_lpf3", num_classes=5, **o),
    "vgg": lambda **o: create_model("vgg11_lpf2", num_classes=5, **o),
    "vgg_bn": lambda **o: create_model("vgg11_bn_lpf4", num_classes=5, **o),
    "basic": lambda **o: small_resnet(BasicBlock, filter_size=4, **o),
    "bottleneck": lambda **o: small_resnet(
        Bottleneck, filter_size=3, groups=8, width_per_group=8, **o
    ),
    "baseline": lambda **o: small_resnet(BasicBlock, **o),
    "densenet": lambda **o: DenseNet((2, 1), filter_size=4, num_classes=5, rngs=nnx.Rngs(0), **o),
    "mobilenet": lambda **o: create_model("mobilenet_v2_lpf4", num_classes=5, **o),
}
# stem, two or three a block, three or four shortcuts; DenseNet's stem and norm2 alone; 52 in all
FOLDED = {"alexnet": 0, "vgg": 0, "vgg_bn": 8, "basic": 12, "bottleneck": 17, "baseline": 12}
FOLDED |= {"densenet": 4, "mobilenet": 52}


QUICK = ("bottleneck",)


@pytest.mark.parametrize(
    "name",
    slow_but(QUICK, [n for n in MODELS if n not in ("alexnet", "vgg")]),
)
def test_logits_are_the_same(name, rng):
    x = jnp.asarray(rng.standard_normal((1, 96, 96, 3)), jnp.float32)
    model = randomised(MODELS[name]())
    fused = fuse(model)
    assert folded(fused) == FOLDED[name]
    assert folded(model) == 0
    expected = logits(model, x)
    difference = jnp.abs(logits(fused, x) - expected).max() / jnp.abs(expected).max()
    assert difference <= 1e-5


@pytest.mark.parametrize("name", ["alexnet", "vgg"])
def test_a_model_without_batch_norm_is_unchanged(name):
    model = nnx.eval_shape(MODELS[name])
    assert jax.tree.structure(nnx.state(fuse(model))) == jax.tree.structure(nnx.state(model))


@pytest.mark.slow
def test_bfloat16_is_kept(rng):
    x = jnp.asarray(rng.standard_normal((2, 64, 64, 3)), jnp.float32)
    model = randomised(MODELS["basic"](dtype=jnp.bfloat16))
    fused, expected = logits(fuse(model), x), logits(model, x)
    assert fused.dtype == expected.dtype == jnp.bfloat16
    difference = jnp.abs(fused - expected).max() / jnp.abs(expected).max()
    assert difference <= 0.05


def test_numpy_arrays_are_not_written_to(rng):
    model = randomised(MODELS["basic"]())
    nnx.update(model, jax.device_get(nnx.state(model)))
    for array in jax.tree.leaves(nnx.state(model)):
        array.setflags(write=False)
    x = jnp.asarray(rng.standard_normal((1, 64, 64, 3)), jnp.float32)
    expected = logits(model, x)
    np.testing.assert_allclose(logits(fuse(model), x), expected, rtol=1e-3, atol=1e-4)


def test_rematerialized_blocks_are_fused_too():
    model = randomised(MODELS["bottleneck"]())
    model.remat = True
    assert folded(fuse(model, image_size=64)) == FOLDED["bottleneck"]


def test_a_fused_backbone_gives_the_same_maps(rng):
    backbone = create_model("resnet18_lpf4", features_only=True, out_indices=(1, 2))
    backbone = randomised(backbone)
    fused = fuse(backbone)
    assert folded(fused) == 10  # the stem and two stages of two blocks, one with a shortcut
    x = jnp.asarray(rng.standard_normal((1, 64, 64, 3)), jnp.float32)
    for found, expected in zip(logits(fused, x), logits(backbone, x), strict=True):
        difference = jnp.abs(found - expected).max() / jnp.abs(expected).max()
        assert difference <= 1e-5


def test_fusing_again_changes_nothing():
    once = fuse(randomised(MODELS["basic"]()))
    for a, b in zip(*(jax.tree.leaves(nnx.state(n)) for n in (once, fuse(once))), strict=True):
        np.testing.assert_array_equal(a, b)


class Registered(aa_flax.Classifier):
    """A custom family, where only `plain` is a pair that can be folded."""

    def __init__(self):
        def make(**options):
            return conv2d(3, 3, 1, rngs=nnx.Rngs(0), **options), BatchNorm(3, rngs=nnx.Rngs(0))

        self.plain, self.read_twice, self.activated, self.called_twice, self.tied = (
            nnx.List(make(use_bias=True)) for _ in range(5)
        )
        self.other = conv2d(3, 3, 1, rngs=nnx.Rngs(0))
        self.other.kernel = self.tied[0].kernel  # pyright: ignore

    def named_blocks(self):
        yield "all", self.all

    def all(self, x):
        x = self.plain[1](self.plain[0](x))
        y = self.read_twice[0](x)
        x = self.read_twice[1](y) + y
        x = self.activated[1](jax.nn.relu(self.activated[0](x)))
        for _ in range(2):
            x = self.called_twice[1](self.called_twice[0](x))
        return self.other(self.tied[1](self.tied[0](x)))

    def __call__(self, x):
        return self.forward_features(x).mean((1, 2))


def test_only_plain_pairs_are_folded(rng):
    model = randomised(Registered())
    fused = fuse(model, image_size=5)
    assert folded(fused) == 1
    assert isinstance(fused.plain[1], Folded)  # pyright: ignore
    x = jnp.asarray(rng.standard_normal((2, 5, 4, 3)), jnp.float32)
    np.testing.assert_allclose(fused(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_model_in_training_mode_is_refused():
    model = small_resnet(BasicBlock)
    model.train()
    with pytest.raises(InputError, match=r"batch norm bn1 .*call model\.eval\(\)"):
        fuse(model)


def test_other_objects_are_refused():
    with pytest.raises(InputError, match=r"takes a model of .*create_model, got a BatchNorm"):
        fuse(BatchNorm(3, rngs=nnx.Rngs(0)))  # pyright: ignore


def test_a_fused_model_is_neither_trained_nor_saved_nor_converted(tmp_path):
    fused = fuse(randomised(MODELS["basic"]()))
    fused.eval()
    with pytest.raises(InputError, match="a fused model cannot be trained"):
        fused.train()
    with pytest.raises(InputError, match=r"save the model that aa_flax\.fuse was given"):
        aa_flax.save_weights(fused, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"convert the model that aa_flax\.fuse was given"):
        aa_flax.to_torch_state_dict(fused)
