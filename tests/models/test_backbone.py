"""Backbones: maps of several resolutions, compared with torchvision's activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from aa_flax import (
    Backbone,
    Classifier,
    FeatureLevel,
    InputError,
    create_model,
    load_torch_state_dict,
    save_weights,
)
from aa_flax.models.densenet import DenseNet
from aa_flax.models.mobilenet import MobileNetV2
from aa_flax.models.registry import base_names, has_reference
from aa_flax.models.resnet import BasicBlock, ResNet
from aa_flax.models.vgg import VGG
from aa_flax.nn.initializers import initialised
from aa_flax.nn.layers import conv2d, linear
from benchmarks.reference import abstract_model, reference_model, relative_difference
from tests.extending.model_family import Stack
from tests.sweeps import slow_but

# Channels of every level, as in timm if it has the model. The last level is 1/32.
CHANNELS = {
    "alexnet": (64, 192, 256, 256),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), (64, 128, 256, 512, 512, 512)),
    **dict.fromkeys(("resnet18", "resnet34"), (64, 64, 128, 256, 512)),
    "densenet121": (64, 256, 512, 1024, 1024),
    "densenet161": (96, 384, 768, 2112, 2208),
    "densenet169": (64, 256, 512, 1280, 1664),
    "densenet201": (64, 256, 512, 1792, 1920),
    "mobilenet_v2": (16, 24, 32, 96, 320),
}
BOTTLENECKS = (64, 256, 512, 1024, 2048)
SLOW = ("resnet101", "resnet152", "101", "densenet161", "densenet169", "densenet201")

# The last layer of each level in torchvision's models.
TORCHVISIONS = {
    "alexnet": ("features.1", "features.4", "features.11", "features.12"),
    "vgg11_bn": [f"features.{i}" for i in (2, 6, 13, 20, 27, 28)],
    "resnet18": ("relu", "layer1", "layer2", "layer3", "layer4"),
    "mobilenet_v2": [f"features.{i}" for i in (1, 3, 6, 13, 17)],
}

TINY = {
    "alexnet": lambda **o: create_model("alexnet_lpf2", **o),
    "vgg": lambda **o: initialised(
        lambda rngs: VGG((1, 1, 1, 1, 1), filter_size=2, rngs=rngs, **o), nnx.Rngs(0)
    ),
    "resnet": lambda **o: ResNet(BasicBlock, (1, 1, 1, 1), filter_size=2, rngs=nnx.Rngs(0), **o),
    "densenet": lambda **o: DenseNet(
        (1, 1), growth_rate=4, num_init_features=8, filter_size=2, rngs=nnx.Rngs(0), **o
    ),
    "mobilenet": lambda **o: initialised(
        lambda rngs: MobileNetV2(width_mult=0.25, filter_size=2, rngs=rngs, **o), nnx.Rngs(0)
    ),
    "own": lambda **o: Stack(2, filter_size=3, rngs=nnx.Rngs(0), **o),
}
everyone = pytest.mark.parametrize("family", TINY)


def images(size: int = 96):
    return np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)


def traced(model, size: int):
    """Returns the shapes of a model's outputs for one image."""
    graphdef, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, image)


@pytest.mark.parametrize(
    "base",
    [
        pytest.param(n, marks=pytest.mark.slow if n.endswith(SLOW) or "101" in n else ())
        for n in filter(has_reference, base_names())
    ],
)
@pytest.mark.parametrize("ending", [pytest.param("", marks=pytest.mark.slow), "_lpf4"])
def test_every_model_has_its_levels(base, ending):
    model = abstract_model(base + ending, features_only=True)
    channels = CHANNELS.get(base.removesuffix("_bn"), BOTTLENECKS)
    reductions = [32 // 2**i for i in reversed(range(len(channels)))]
    assert [level.channels for level in model.feature_info] == list(channels)
    assert [level.reduction for level in model.feature_info] == reductions
    size = 224
    shapes = [tuple(x.shape) for x in traced(model, size)]
    if base != "alexnet":  # whose stem has too little padding
        assert shapes == [
            (1, size // r, size // r, c) for c, r in zip(channels, reductions, strict=True)
        ]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "vgg11_bn" else ()) for n in TORCHVISIONS],
)
def test_maps_are_torchvisions_intermediate_activations(name):
    from torchvision.models.feature_extraction import create_feature_extractor

    reference = reference_model(name)
    for layer in reference.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False
    extractor = create_feature_extractor(reference, return_nodes=list(TORCHVISIONS[name]))
    model = Backbone(load_torch_state_dict(create_model(name), reference.state_dict()))
    x = images(64 if name != "alexnet" else 96)
    with torch.no_grad():  # in float64: rounding to float32 differs between processors
        expected = extractor.double()(torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64))
    graphdef, state = nnx.split(model)
    maps = jax.jit(lambda s, x: nnx.merge(graphdef, s)(x))(state, x)
    assert len(maps) == len(TORCHVISIONS[name])
    for found, (node, map_) in zip(maps, expected.items(), strict=True):
        assert relative_difference(found, map_.permute(0, 2, 3, 1).numpy()) <= 1e-5, node


@pytest.mark.parametrize("family", slow_but(("resnet", "densenet", "own"), TINY))
def test_the_last_map_classified_is_what_the_model_gives(family):
    model = TINY[family](num_classes=5)
    model.eval()
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, x):
        merged = nnx.merge(graphdef, state)
        features = merged.forward_features(x)
        embedding = merged.forward_head(features, pre_logits=True)
        again = getattr(merged, merged.last_layer)(embedding)
        last = Backbone(nnx.merge(graphdef, state))(x)[-1]
        return merged(x), merged.forward_head(features), again, features, last

    logits, *others, features, last = run(state, images(96 if family == "alexnet" else 64))
    assert logits.shape == (2, 5)
    for other in others:
        np.testing.assert_allclose(other, logits, rtol=1e-5, atol=1e-5)
    if family != "mobilenet":  # whose last convolution belongs to the classifier
        np.testing.assert_allclose(last, features, rtol=1e-5, atol=1e-5)


@everyone
def test_a_classifier_is_replaced_taken_out_and_put_back(family):
    model = nnx.eval_shape(lambda: TINY[family](num_classes=5))
    last = model.last_layer
    features = getattr(model, last).in_features
    before = [path for path, _ in nnx.to_flat_state(nnx.state(model))]
    model.reset_classifier(7)
    assert (model.num_classes, traced(model, 96).shape) == (7, (1, 7))
    model.reset_classifier(0)
    assert (model.num_classes, traced(model, 96).shape) == (0, (1, features))
    model.reset_classifier(5, rngs=nnx.Rngs(1))
    assert getattr(model, last).kernel.shape == (features, 5)
    assert [path for path, _ in nnx.to_flat_state(nnx.state(model))] == before


def test_a_new_classifier_is_initialised_as_its_family_does_it():
    model = TINY["mobilenet"](num_classes=0)
    model.reset_classifier(4)
    assert not model.classifier.bias[...].any()
    assert 0.005 < float(model.classifier.kernel[...].std()) < 0.02  # normal(0.01)
    with pytest.raises(InputError, match="num_classes must be an integer of at least 0, got -1"):
        model.reset_classifier(-1)


QUICK = ("alexnet", "densenet")  # without and with batch norms


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(
    "family", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in TINY]
)
def test_every_model_is_tabulated(family, features_only):
    model = TINY[family](num_classes=2)
    model.eval()
    if features_only:
        model = Backbone(model, out_indices=(-1,))
    table = nnx.tabulate(model, jnp.ones((1, 96, 96, 3)), depth=2)
    assert type(model).__name__ in table


@everyone
def test_only_what_the_maps_depend_on_is_kept(family):
    whole = nnx.eval_shape(lambda: TINY[family](num_classes=2))
    coarsest = Backbone(nnx.clone(whole), out_indices=[-1])
    finest = Backbone(nnx.clone(whole), out_indices=[0])
    counts = [len(jax.tree.leaves(nnx.state(m, nnx.Param))) for m in (finest, coarsest, whole)]
    assert counts[0] < counts[1] < counts[2]
    assert traced(finest, 96)[0].shape[-1] == finest.feature_info[0].channels


def test_levels_come_in_the_order_they_are_asked_for():
    model = nnx.eval_shape(
        lambda: create_model("resnet18_lpf4", features_only=True, out_indices=np.array([-1, 1]))
    )
    assert model.out_indices == (4, 1)
    assert model.feature_info == (
        FeatureLevel("layer4.1", 512, 32),
        FeatureLevel("layer1.1", 64, 4),
    )
    assert [x.shape for x in traced(model, 64)] == [(1, 2, 2, 512), (1, 16, 16, 64)]
    assert model.name == "resnet18_lpf4"
    assert model.config.input_size == 224


@pytest.mark.parametrize(
    ("options", "reductions"),
    [({"output_stride": 8}, [2, 4, 8, 8, 8]), ({"stem": "small"}, [1, 1, 2, 4, 8])],
)
def test_levels_of_a_resnet_are_its_stages_whatever_their_strides(options, reductions):
    model = abstract_model("resnet18_lpf4", features_only=True, **options)
    assert [level.reduction for level in model.feature_info] == reductions


def test_weights_of_a_whole_model_are_those_of_its_backbone(tmp_path):
    whole = create_model("mobilenet_v2_lpf2", num_classes=3, width_mult=0.25, rngs=nnx.Rngs(3))
    save_weights(whole, tmp_path / "w.safetensors", licence="CC0")
    given = create_model(
        "mobilenet_v2_lpf2",
        features_only=True,
        pretrained=tmp_path / "w.safetensors",
        width_mult=0.25,
    )
    assert given.config.licence == "CC0"
    assert given.config.weights == str(tmp_path / "w.safetensors")
    kernel = whole.blocks[3].project.kernel[...]
    np.testing.assert_array_equal(given.net.blocks[3].project.kernel[...], kernel)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features_only": True, "out_indices": (5,)}, r"levels of resnet18, of 0 \(1/2\), 1 .*5,"),
        ({"features_only": True, "out_indices": ()}, r"out_indices are levels .*; got \(\)"),
        ({"features_only": True, "out_indices": (True,)}, "out_indices are levels"),
        ({"features_only": True, "num_classes": 3}, "gives no logits, got num_classes=3"),
        ({"features_only": 1}, "features_only must be True or False, got 1"),
        ({"out_indices": (1,)}, "give features_only=True with them"),
    ],
)
def test_what_a_backbone_cannot_be_is_said(options, message):
    with pytest.raises(InputError, match=message):
        abstract_model("resnet18", **options)


def test_a_backbone_refuses_images_that_are_too_small_or_none():
    model = abstract_model("resnet18_lpf4", features_only=True)
    with pytest.raises(InputError, match="32x32 pixels are too small for resnet18_lpf4, which"):
        traced(model, 32)
    with pytest.raises(InputError, match="one image needs a batch axis"):
        model(np.zeros((64, 64, 3), np.float32))


class CallAlone(Classifier):
    """A model whose `__call__` has a custom head, and which names its last layer."""

    last_layer = "out"

    def __init__(self):
        super().__init__(num_classes=2)
        self.conv = conv2d(3, 4, 3, rngs=nnx.Rngs(0))
        self.out = linear(4, 2, rngs=nnx.Rngs(0))

    def named_blocks(self):
        yield "conv", self.conv

    def __call__(self, x):
        return self.out(self.forward_features(x).max((1, 2)))


def test_a_head_that_is_not_known_is_not_guessed():
    with pytest.raises(InputError, match="CallAlone defines __call__ and no forward_head"):
        CallAlone().forward_head(jnp.zeros((1, 2, 2, 4)))
    with pytest.raises(InputError, match="Unnamed has no layer 'fc'; set in the class"):
        type("Unnamed", (CallAlone,), {"last_layer": "fc"})().reset_classifier(3)


class Flattens(CallAlone):
    def named_blocks(self):
        yield "flat", lambda x: x.reshape(len(x), -1)


def test_a_block_without_a_map_is_no_level():
    with pytest.raises(InputError, match=r"flat of Flattens gives .* that grow with them"):
        Backbone(Flattens())
