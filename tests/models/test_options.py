"""Options of the models: stored ones, refused ones, and models without a classifier."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError
from aa_flax.models.densenet import DenseNet
from aa_flax.models.mobilenet import MobileNetV2
from aa_flax.models.registry import build
from aa_flax.models.resnet import Bottleneck, ResNet
from aa_flax.models.vgg import VGG
from aa_flax.nn import initializers
from benchmarks.reference import logits_shape, state_shapes


def abstract(name, **options):
    model = initializers.abstract(lambda rngs: build(name, rngs=rngs, **options))
    model.eval()
    return model


EMBEDDINGS = {
    "alexnet": ("fc3", 4096),
    "vgg11": ("fc3", 4096),
    "resnet18": ("fc", 512),
    "densenet121": ("classifier", 1024),
    "mobilenet_v2": ("classifier", 1280),
}


@pytest.mark.parametrize("base", EMBEDDINGS)
def test_zero_classes_give_the_pooled_embedding_and_leave_out_the_last_layer(base):
    last, features = EMBEDDINGS[base]
    model, whole = abstract(f"{base}_lpf4", num_classes=0), abstract(f"{base}_lpf4")
    assert model.num_classes == 0
    assert logits_shape(model, 96) == (1, features)
    missing = state_shapes(whole).keys() - state_shapes(model).keys()
    assert missing == {(last, "kernel"), (last, "bias")}
    names = [name for name, _ in model.torch_layers()]
    assert names == [name for name, _ in whole.torch_layers()][:-1]


def test_the_embedding_is_what_the_classifier_sees(rng):
    small = {"growth_rate": 4, "num_init_features": 8, "filter_size": 1}
    whole = DenseNet((1, 1), **small, num_classes=5, rngs=nnx.Rngs(0))
    embedder = DenseNet((1, 1), **small, num_classes=0, rngs=nnx.Rngs(1))
    nnx.update(embedder, nnx.state(whole, lambda path, _: path[0] != "classifier"))
    whole.eval()
    embedder.eval()
    x = jnp.asarray(rng.standard_normal((2, 16, 16, 3), np.float32))
    assert embedder(x).shape == (2, 10)
    np.testing.assert_allclose(whole.classifier(embedder(x)), whole(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [-1, True, False, 10.0, "10", None])
def test_a_number_of_classes_is_an_integer(number):
    for base in EMBEDDINGS:
        with pytest.raises(InputError, match="num_classes must be an integer of at least 0, g"):
            abstract(base, num_classes=number)


def test_numpys_numbers_are_numbers():
    assert abstract("resnet18", num_classes=np.int64(7), groups=np.int32(1)).num_classes == 7
    model = nnx.eval_shape(lambda: MobileNetV2(filter_size=np.int64(2), rngs=nnx.Rngs(0)))
    assert model.filter_size == 2


REFUSED = [
    ("resnet50", {"groups": 0}, "groups must be an integer of at least 1, got 0"),
    ("resnet50", {"width_per_group": 0}, "width_per_group must be .* at least 1, got 0"),
    ("resnet50", {"groups": 1.5}, "groups must be an integer"),
    ("resnet50", {"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
    ("resnet50", {"output_stride": True}, "output_stride must be 8, 16 or 32, got True"),
    (
        "vgg11",
        {"output_stride": 16},
        "unknown option .*; models that have it: resnet18, ",
    ),
    (
        "alexnet",
        {"stem": "small"},
        "unknown option .*; models that have it: .*, densenet121, ",
    ),
    ("mobilenet_v2", {"stem": "tiny"}, "stem must be 'imagenet' or 'small', got 'tiny'"),
    ("resnet18", {"stem": "tiny"}, "stem must be 'imagenet', 'small' or 'deep', got 'tiny'"),
    ("resnet18", {"squeeze_excitation": 1}, "squeeze_excitation must be True or False, got 1"),
    ("resnet18_lpf4", {"stem": "small", "pool_only": False}, "stem='small' has none"),
    ("resnet18_lpf4", {"pool_only": "False"}, "pool_only must be True or False, got 'False'"),
    ("alexnet", {"dropout": 1.5}, "dropout must be a number from 0 to 1, got 1.5"),
    ("vgg11", {"dropout": -0.1}, "dropout must be a number from 0 to 1"),
    ("vgg11", {"dropout": float("nan")}, "dropout must be a number from 0 to 1, got nan"),
    ("mobilenet_v2", {"dropout": True}, "dropout must be a number from 0 to 1"),
    ("mobilenet_v2", {"width_mult": 0}, "width_mult must be a number of at least 0.0625, got 0"),
    ("mobilenet_v2", {"width_mult": float("inf")}, "width_mult must be a number"),
    ("densenet121", {"drop_rate": 2}, "drop_rate must be a number from 0 to 1"),
    ("densenet121", {"growth_rate": 0}, "growth_rate must be an integer of at least 1"),
    ("densenet121", {"bn_size": -1}, "bn_size must be"),
    ("densenet121", {"num_init_features": 0}, "num_init_features must be"),
    ("resnet18", {"pool_onyl": True}, "unknown option of resnet18 'pool_onyl'; did you mean pool"),
    ("resnet18", {"remat": 1}, "remat must be True or False"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_the_error_for_an_invalid_option_lists_accepted_values(name, options, message):
    with pytest.raises(InputError, match=message):
        abstract(name, **options)


@pytest.mark.parametrize("size", [True, 0, -2, 2.5, "4"])
@pytest.mark.parametrize("model", [MobileNetV2, lambda **o: ResNet(Bottleneck, (1, 1, 1, 1), **o)])
def test_a_filter_size_is_an_integer(model, size):
    with pytest.raises(InputError, match="filter_size must be an integer of at least 1"):
        model(filter_size=size, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "model",
    [
        lambda: VGG((1, 1, 1), rngs=nnx.Rngs(0)),
        lambda: ResNet(Bottleneck, (1, 1, 1, 1, 1), rngs=nnx.Rngs(0)),
        lambda: ResNet(Bottleneck, (1, 0, 1, 1), rngs=nnx.Rngs(0)),
        lambda: DenseNet((), rngs=nnx.Rngs(0)),
    ],
)
def test_depths_are_as_many_numbers_as_there_are_stages(model):
    with pytest.raises(InputError, match=r"(layers|block_config) must"):
        model()


def test_no_dilation_may_be_said_in_either_way():
    for given in ({}, {"output_stride": 32}, {"output_stride": np.int64(32)}):
        model = abstract("resnet50_lpf4", **given)
        assert model.options == {}
        assert model.layer4[0].pool is not None


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("resnet18_lpf4", {"pool_only": False}, {"pool_only": False}),
        ("resnet18_lpf4", {"pool_only": True, "zero_init_residual": True, "num_classes": 3}, {}),
        ("alexnet_lpf4", {"relu_first": False, "dropout": 0.1}, {"relu_first": False}),
        ("mobilenet_v2", {"width_mult": np.float64(0.5)}, {"width_mult": 0.5}),
        ("resnet50", {"output_stride": 16}, {"output_stride": 16}),
        ("mobilenet_v2_lpf4", {"stem": "small"}, {"stem": "small"}),
        ("vgg11_bn", {"batch_norm": True}, {}),
        ("vgg11_bn", {"batch_norm": False}, {"batch_norm": False}),
    ],
)
def test_options_that_make_another_function_are_kept(name, given, kept):
    model = abstract(name, **given)
    assert model.options == kept
    assert hash(nnx.graphdef(model)) is not None  # the key of a jitted function's cache
