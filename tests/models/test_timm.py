"""timm's antialiased models compared with timm; weights are from files that timm writes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import aa_flax
from aa_flax import InputError, create_model, list_models, preprocess
from aa_flax.models.densenet_timm import TimmDenseNet
from aa_flax.models.mobilenetv4 import MobileNetV4
from aa_flax.models.registry import hub_repository
from aa_flax.models.resnet import Bottleneck
from aa_flax.models.resnet_timm import AveragePool, TimmResNet
from aa_flax.nn.layers import Folded
from benchmarks.reference import (
    abstract_model,
    assert_same_model,
    compiled,
    logits_shape,
    randomised,
    relative_difference,
    torch,
)
from tests import randomised as of_flax
from tests.sweeps import slow_but

timm = pytest.importorskip("timm")  # after the module that makes torchvision importable

NAMES = (
    "resnetblur50",
    "resnetaa50",
    "resnetaa50d",
    "resnetaa101d",
    "seresnextaa101d_32x8d",
    "densenetblur121d",
    "mobilenetv4_conv_blur_medium",
)
QUICK = ("resnetblur50", "mobilenetv4_conv_blur_medium")

SHORT = (1, 1, 1, 1)  # number of blocks per stage
NEXT = {"stem": "deep", "groups": 32, "width_per_group": 8, "squeeze_excitation": True}
short_resnet = partial(TimmResNet, Bottleneck, SHORT, AveragePool, None, NEXT)
ROWS = ((48, [(0, 3, 0, 4)]), (80, [(3, 1, 5, 4), (0, 1, 3, 2)]))
TINY = {  # a model of each family, and the number of its folded batch norms
    "resnet": (short_resnet, 3 + 4 * 3 + 4),
    "densenet": (partial(TimmDenseNet, (1, 1)), 3 + 2),
    "mobilenet": (partial(MobileNetV4, ROWS), 1 + 2 + 4 + 3 + 2),
}


def tiny(family):
    """Returns the family's model with random variables, in evaluation mode."""
    new = TINY[family][0]
    return of_flax.randomised(nnx.eval_shape(lambda: new(num_classes=5, rngs=nnx.Rngs(0))))


def images(*sides):
    return np.random.default_rng(0).standard_normal((2, *sides, 3), np.float32)


def theirs(name, **options):
    """Returns timm's model with random weights.

    With gates on every branch, maps of 33 blocks would grow so much that timm's logits in float32
    and float64 differ by 40 %; smaller branches keep rounding errors small.
    """
    reference = randomised(timm.create_model(name, **options))
    for path, layer in reference.named_modules():
        if name.startswith("se") and path.endswith(".bn3"):
            layer.weight.data *= 0.2
    return reference


@pytest.fixture(scope="module", params=slow_but(QUICK, NAMES))
def reference(request):
    reference = theirs(request.param)
    reference.name = request.param
    return reference


def test_the_model_is_timms(reference):
    size = (97, 65) if "aa" in reference.name else (75, 101)
    assert_same_model(create_model(reference.name), reference, size)


@pytest.mark.parametrize(
    ("ours", "name", "options"),
    [
        (short_resnet, "seresnextaa101d_32x8d", {"layers": SHORT}),
        (partial(TimmDenseNet, SHORT), "densenetblur121d", {"block_config": SHORT}),
    ],
)
def test_a_short_model_is_timms(ours, name, options):
    model = ours(rngs=nnx.Rngs(0))
    model.eval()
    assert_same_model(model, theirs(name, **options), (64, 97))


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".pth", marks=pytest.mark.slow)])
def test_weights_are_read_from_timms_files_and_survive_our_own(reference, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(reference.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(reference.state_dict(), path, {"format": "pt"})
    model = create_model(reference.name, pretrained=path)
    x = images(96, 96)
    with torch.no_grad():
        expected = reference(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative_difference(compiled(model)(x), expected) <= 1e-5
    assert model.config.weights == str(path)

    aa_flax.save_weights(model, tmp_path / "ours.safetensors")
    again = create_model(reference.name, pretrained=tmp_path / "ours.safetensors")
    assert again.config == model.config
    pairs = zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, again)), strict=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_images_and_repository_are_timms(name):
    facts = timm.get_pretrained_cfg(name)
    config = timm.data.resolve_data_config({}, pretrained_cfg=vars(facts), use_test_size=True)
    transform = timm.data.create_transform(**config)
    pixels = np.random.default_rng(0).integers(0, 256, (333, 500, 3), np.uint8)
    expected = transform(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
    model = abstract_model(name)
    assert model.config.interpolation == facts.interpolation
    found = preprocess(pixels, model)
    np.testing.assert_allclose(found[0], expected, atol=2e-6)
    assert (hub_repository(name), facts.license) == (facts.hf_hub_id, "apache-2.0")


def test_weights_for_any_use_are_those_of_timms_models():
    assert list_models(licence="open") == list(NAMES)
    assert list_models("densenet*", licence="open", pretrained=True) == ["densenetblur121d"]
    with pytest.raises(InputError, match="licence must be one of open; got 'free'"):
        list_models(licence="free")


def test_maps_of_odd_sides_do_not_fit_average_pools():
    model = abstract_model("resnetaa50")
    assert logits_shape(model, 96) == (1, 1000)
    with pytest.raises(InputError, match=r"even sizes alone, got maps of 9x9; give .* of 32"):
        logits_shape(model, 37)


@pytest.mark.parametrize("name", slow_but(QUICK, NAMES))
def test_they_are_backbones_without_a_pool_of_choice(name):
    model = abstract_model(name, features_only=True)
    levels = timm.create_model(name, features_only=True).feature_info
    assert [level.reduction for level in model.feature_info] == [2, 4, 8, 16, 32]
    assert [level.channels for level in model.feature_info] == levels.channels()
    with pytest.raises(InputError, match=f"unknown option of {name} 'pool'"):
        abstract_model(name, pool="binomial3")


@pytest.mark.parametrize("family", slow_but(("mobilenet",), TINY))
def test_gradients_are_finite(family):
    model = tiny(family)
    model.train()
    x = images(64, 64)
    graphdef, params, others = nnx.split(model, nnx.Param, ...)

    def loss(params):
        logits = nnx.merge(graphdef, params, others, copy=True)(x)
        return jnp.square(logits).mean()

    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.abs(gradient).max() > 0 or "bias" in str(path), path


@pytest.mark.parametrize("family", slow_but(("densenet", "mobilenet"), TINY))
def test_they_are_fused_and_exported(family, tmp_path):
    pytest.importorskip("onnxruntime")
    from aa_flax.export.onnx_file import run

    model, x = tiny(family), images(64, 64)
    expected = compiled(model)(x)
    fused = aa_flax.fuse(model, image_size=64)
    assert sum(type(layer) is Folded for _, layer in nnx.iter_modules(fused)) == TINY[family][1]
    assert relative_difference(compiled(fused)(x), expected) <= 1e-5
    path = aa_flax.export(model, tmp_path / "model.onnx", size=64).path
    assert relative_difference(run(path, x), expected) <= 1e-5
