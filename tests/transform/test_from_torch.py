"""Models of torchvision, timm and segmentation_models_pytorch as JAX functions."""

import os
import subprocess
import sys
import types
from collections import Counter
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if find_spec("torchax") is None:  # importing it here would leave its settings on
    pytest.skip("torchax is missing", allow_module_level=True)
# PyPI's torchvision has compiled operators for CUDA builds of torch only; its models need none.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("absent"))

import antialiased_cnns
import timm
import torch
from torch import nn
from torchvision import models
from torchvision.models import detection, segmentation

import aa_flax
from aa_flax import InputError, antialias, from_torch
from tests.sweeps import slow_but
from tests.transform.models import strided_operations


def randomised(model, seed=0):
    """Draws every weight, bias and batch statistic, so that each layer shows in the outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, x in [*model.named_parameters(), *model.named_buffers()]:
            name = path.rpartition(".")[2]
            one_per_channel = isinstance(x, nn.Parameter) and x.ndim <= 1
            if name in ("running_mean", "bias"):
                x.normal_(0, 0.3, generator=generator)
            elif (name in ("running_var", "weight") and x.ndim == 1) or one_per_channel:
                x.uniform_(0.5, 1.5, generator=generator)
            elif isinstance(x, nn.Parameter):
                x.normal_(0, x[0].numel() ** -0.5, generator=generator)
    return model.eval()


def images(size=64, seed=0, channels=3):
    shape = (1, channels, size, size)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def in_torch(model, *inputs):
    with torch.no_grad():
        outputs = model(*map(torch.from_numpy, inputs))
    return jax.tree.map(lambda x: x.numpy(), outputs)


def largest_difference(found, expected):
    """Returns the largest difference of any output, relative to the output's largest value."""
    differences = jax.tree.map(lambda x, y: np.abs(x - y).max() / np.abs(y).max(), found, expected)
    return max(jax.tree.leaves(differences))


class UNet(nn.Module):
    """A UNet of two levels: pooled, upsampled by a transposed convolution, joined."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.inner = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([x, self.up(self.inner(self.pool(x)))], 1))


def unet_of_package(**options):
    package = pytest.importorskip("segmentation_models_pytorch")
    return package.Unet(encoder_weights=None, **options)


def backbone(name):
    return getattr(detection, name)(weights=None, weights_backbone=None).backbone


def segmenter(name):
    return getattr(segmentation, name)(weights=None, weights_backbone=None)


SMALL = {  # one of each kind of layer
    "resnet": partial(models.ResNet, models.resnet.BasicBlock, [1, 1, 1, 1], 10),
    "densenet": partial(models.DenseNet, 8, (2, 2, 2), 16, num_classes=10),
    "convnext v2": partial(
        timm.create_model,
        "convnextv2_atto",
        depths=(1, 1, 1, 1),
        dims=(8, 16, 24, 32),
        num_classes=10,
    ),
    "vit": partial(timm.create_model, "vit_tiny_patch16_224", img_size=64, depth=2),
    "unet": UNet,
}
LARGE = {
    **{
        f"torchvision {name}": getattr(models, name)
        for name in (
            *("resnet18", "regnet_y_400mf", "efficientnet_b0", "mobilenet_v2"),
            *("mobilenet_v3_small", "convnext_tiny", "densenet121", "vgg11_bn", "swin_t"),
        )
    },
    "torchvision vit_b_16": partial(models.vit_b_16, image_size=64),
    **{
        f"timm {name}": partial(timm.create_model, name)
        for name in (
            *("resnet18", "resnet18d", "regnety_002", "efficientnet_b0", "mobilenetv3_small_050"),
            *("mobilenetv4_conv_small_035", "convnext_atto", "convnextv2_atto", "densenet121"),
            "hrnet_w18_small",
        )
    },
    **{
        f"timm {name}": partial(timm.create_model, name, img_size=64)
        for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
    },
    "timm resnet18 features": partial(timm.create_model, "resnet18", features_only=True),
    **{
        name: partial(segmenter, name)
        for name in ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")
    },
    "smp unet": partial(unet_of_package, encoder_name="resnet18"),
    **{
        f"{name} backbone": partial(backbone, name)
        for name in ("fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn")
    },
}
MODELS = SMALL | LARGE
CASES = slow_but(SMALL, MODELS)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_torchs_and_every_strided_operation_is_a_site(name):
    model, x = randomised(MODELS[name]()), images(seed=1)
    function, params = from_torch(model, images())
    found = function(params, x)
    exact = in_torch(model.double(), x.astype(np.float64))
    assert largest_difference(found, exact) <= 1e-5

    report = antialias.report(function, params, x)
    sites = Counter(row.site.primitive for row in report if row.site.kind != "space to depth")
    assert sites == strided_operations(function, params, x)
    if report.antialiased:
        blurred = jax.jit(antialias(function))(params, x)
        assert all(bool(jnp.isfinite(y).all()) for y in jax.tree.leaves(blurred))
        assert largest_difference(blurred, found) > 1e-3


def without_classifier(model):
    model.avgpool = model.classifier = nn.Identity()
    return model


ORIGINALS = {
    "vgg": (
        lambda: without_classifier(models.vgg11_bn()),
        lambda: without_classifier(antialiased_cnns.vgg11_bn()),
    ),
    "mobilenet": (models.mobilenet_v2, antialiased_cnns.mobilenet_v2),
    "densenet": (
        SMALL["densenet"],
        partial(
            antialiased_cnns.densenet.DenseNet, 8, (2, 2, 2), 16, num_classes=10, filter_size=4
        ),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param("vgg", marks=pytest.mark.slow), "mobilenet", "densenet"]
)
def test_antialiased_is_the_originals_model_with_the_same_weights(name):
    plain, original = (build() for build in ORIGINALS[name])
    randomised(plain)
    weights = plain.state_dict().values()
    learned = [key for key in original.state_dict() if not key.endswith("filt")]
    original.load_state_dict(dict(zip(learned, weights, strict=True)), strict=False)
    function, params = from_torch(plain, images())
    found = jax.jit(antialias(function))(params, images())
    assert largest_difference(found, in_torch(original.eval(), images())) <= 1e-5


@pytest.fixture(scope="module")
def small():
    model = randomised(SMALL["resnet"]())
    return model, *from_torch(model, images())


def test_gradients_are_torchs(small):
    model, function, params = small
    gradient = jax.jit(jax.grad(lambda params: function(params, images()).sum()))(params)
    model(torch.from_numpy(images())).sum().backward()
    for name, parameter in model.named_parameters():
        assert largest_difference(gradient[name], parameter.grad.numpy()) <= 1e-4, name


def test_the_function_can_be_vectorised_and_accepts_other_sizes(small):
    model, function, params = small
    x = np.concatenate([images(96), images(96, seed=1)])
    one_by_one = jax.vmap(function, (None, 0))(params, x[:, None])[:, 0]
    assert largest_difference(one_by_one, in_torch(model, x)) <= 1e-5


def test_sites_have_the_names_of_modules(small):
    _, function, params = small
    layers = [row.site.layer for row in antialias.report(function, params, images())]
    assert layers[:3] == [
        "conv1/aten::convolution",
        "maxpool/max_pool2d",
        "layer2/0/conv1/aten::convolution",
    ]


def test_a_count_of_pixels_is_no_site():
    x = images(16, channels=8)
    pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)  # as in ResNet-D of timm
    (row,) = antialias.report(*from_torch(pool, x), x)
    assert (row.site.kind, row.done) == ("average pool", "blur in its place")


def test_convnexts_downsamplings_cost_a_blur_each_and_no_dense_convolution():
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1))  # blocks have no stride
    function, params = from_torch(model, images(224))
    cost = antialias.report(function, params, images(224)).extra_flops
    assert cost == 2 * 4**2 * sum(
        channels * side**2 for channels, side in ((40, 56), (80, 28), (160, 14))
    )
    dense = antialias.report(antialias(function, before=False), params, images(224)).extra_flops
    assert cost < dense / 20


def test_evaluate_takes_the_function_with_channels_last():
    features = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    function, params = from_torch(model, images(32))

    def predict(x):
        return antialias(function)(params, jnp.moveaxis(x, -1, 1))

    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    sizes = {"crop_size": 32, "shift_range": 8, "resize_size": 0}
    results = aa_flax.evaluate(predict, pixels, "images", within=1, **sizes)
    assert results["images"]["num_images"] == 2


def test_training_mode_is_converted_as_evaluation_and_kept():
    model = randomised(UNet()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    function, params = from_torch(model, torch.from_numpy(images()))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert largest_difference(function(params, images()), in_torch(model.eval(), images())) <= 1e-5


def test_params_are_copies_by_torchs_names_without_integers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    _, params = from_torch(model, np.ones((2, 4), np.float32))
    norm = {f"2.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    assert params.keys() == {"0.weight", "0.bias", "1.bias"} | norm
    value = np.array(params["0.weight"])
    with torch.no_grad():
        model[0].weight.zero_()
    assert np.array_equal(params["0.weight"], value)


def test_shared_parameters_have_one_gradient():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    x = np.ones((1, 4), np.float32)
    function, params = from_torch(model, x)
    model(torch.from_numpy(x)).sum().backward()
    gradient = jax.grad(lambda params: function(params, x).sum())(params)
    np.testing.assert_allclose(gradient["0.weight"], model[0].weight.grad, rtol=1e-5)


class Module(nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def test_inputs_and_outputs_keep_their_structure():
    model = Module(lambda x, y: {"b": (x + y["y"], None), "a": [x], "count": 3})
    inputs = (np.ones(2, np.float32), {"y": np.full(2, 2, np.float32)})
    outputs = from_torch(model, inputs)[0]({}, *inputs)
    assert outputs["b"][1] is None
    np.testing.assert_array_equal(outputs["b"][0], [3, 3])
    np.testing.assert_array_equal(outputs["a"][0], [1, 1])
    assert outputs["count"] == 3


def test_a_model_may_create_tensors_and_change_its_input():
    model = Module(lambda x: x.relu_() * torch.arange(3)[:, None, None] + torch.ones(3, 1, 1))
    x = torch.from_numpy(images())
    function, _ = from_torch(model, x)
    assert x.min() < 0
    expected = np.maximum(images(), 0) * np.arange(3)[:, None, None] + 1
    np.testing.assert_allclose(function({}, images()), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    model = randomised(UNet()).to(dtype)
    function, params = from_torch(model, torch.from_numpy(images()).to(dtype))
    expected = jnp.float32 if dtype == torch.float64 else str(dtype).removeprefix("torch.")
    assert {x.dtype for x in params.values()} == {jnp.dtype(expected)}
    assert function(params, images().astype(expected)).dtype == expected


def test_a_strided_slice_becomes_a_blur():
    x = images(16, channels=8)
    function, _ = from_torch(Module(lambda x: x[:, :, ::2, ::2]), x)
    found = jnp.moveaxis(antialias(function)({}, x), 1, -1)
    expected = aa_flax.blur_pool(jnp.moveaxis(jnp.asarray(x), 1, -1), filter_size=4, stride=2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fused_attention_is_converted_and_stays_on():
    model = randomised(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
    x = np.random.default_rng(0).standard_normal((2, 5, 16), np.float32)
    function, params = from_torch(model, x)
    assert torch.backends.mha.get_fastpath_enabled()
    assert largest_difference(function(params, x), in_torch(model, x)) <= 1e-5


def test_settings_of_jax_and_torch_stay():
    script = """
import os, jax, torch, numpy as np
from aa_flax import from_torch
def settings():
    return (dict(jax.config.values), dict(os.environ), torch.get_default_dtype(),
            torch.get_default_device(), torch.backends.mha.get_fastpath_enabled(),
            torch.accelerator.is_available())
before = settings()
from_torch(torch.nn.Linear(2, 2), np.ones((1, 2), np.float32))
assert settings() == before
"""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def wrong(x):
    return torch.nn.functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True)  # torchax counts too few


FAILING = {
    "operation": (lambda x: nn.functional.adaptive_max_pool2d(x, 2), "aten::adaptive_max_pool2d"),
    "branch": (lambda x: x if x.sum() > 0 else -x, "control flow or shapes depend on values"),
    "item": (lambda x: x * x.max().item(), "control flow or shapes depend on values"),
    "mask": (lambda x: x[x > 0], "control flow or shapes depend on values"),
    "constant": (partial(torch.mul, torch.ones(3, 1, 1)), "register_buffer"),
    "random": (nn.functional.dropout, "differs from torch .* it draws random numbers"),
    "wrong": (wrong, "differs from torch .* torchax computes an operation differently"),
    "in torch": (
        lambda x: x @ x[:, :, :3],
        r"does not run on the example \(of shape .*\) in torch",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_cannot_be_converted_is_named(name):
    function, message = FAILING[name]
    with pytest.raises(InputError, match=f"Module .*{message}"):
        from_torch(Module(function), images(16))


def test_no_module_is_refused():
    with pytest.raises(InputError, match=r"takes a torch\.nn\.Module, got a function"):
        from_torch(lambda x: x, images())


def test_params_of_another_model_are_refused():
    function, params = from_torch(nn.Linear(2, 2), np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match="must have the names that from_torch returned"):
        function(params | {"other": params["bias"]}, np.ones((1, 2), np.float32))


@pytest.mark.parametrize("error", [ImportError("no module"), AttributeError("of another release")])
def test_a_missing_or_wrong_torchax_is_explained(error, monkeypatch):
    class Fails:
        def find_spec(self, name, path=None, target=None):
            if name == "torchax":
                raise error

    for name in [n for n in sys.modules if n.partition(".")[0] == "torchax"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Fails(), *sys.meta_path])
    with pytest.raises(InputError, match=rf"{error}; pip install 'aa_flax\[from_torch\]'"):
        from_torch(nn.Linear(2, 2), np.ones((1, 2), np.float32))


def test_a_missing_torch_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="from_torch needs torch and torchax: pip install"):
        from_torch(object(), images())
