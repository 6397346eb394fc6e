"""timm's antialiased models, next to timm; their weights from files that timm writes."""

import numpy as np
import pytest
from PIL import Image

from aa_flax import InputError, create_model, preprocess
from benchmarks.reference import (
    abstract_model,
    assert_same_net,
    compiled,
    logits_shape,
    randomised,
    relative_difference,
    torch,
)

timm = pytest.importorskip("timm")  # behind the import that lets torchvision be imported

NAMES = ("resnetblur50", "resnetaa50")


@pytest.fixture(scope="module", params=NAMES)
def net(request):
    net = randomised(timm.create_model(request.param))
    net.name = request.param
    return net


def test_the_model_is_timms(net):
    sizes = [(64, 96)] if net.name == "resnetaa50" else [(64, 96), (75, 101)]
    assert_same_net(create_model(net.name), net, *sizes)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_read_from_timms_files(net, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(net.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(net.state_dict(), path, {"format": "pt"})
    model = create_model(net.name, pretrained=path)
    x = np.random.default_rng(0).standard_normal((1, 64, 64, 3), np.float32)
    with torch.no_grad():
        expected = net(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative_difference(compiled(model)(x), expected) <= 1e-5
    assert model.config.weights == str(path)


def test_images_are_what_timm_tests_with(net):
    config = timm.data.resolve_data_config({}, model=net, use_test_size=True)
    transform = timm.data.create_transform(**config)
    pixels = np.random.default_rng(0).integers(0, 256, (333, 500, 3), np.uint8)
    expected = transform(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
    found = preprocess(pixels, abstract_model(net.name))
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_maps_of_odd_sides_do_not_fit_average_pools():
    model = abstract_model("resnetaa50")
    assert logits_shape(model, 96) == (1, 1000)
    with pytest.raises(InputError, match=r"even sizes alone, got maps of 9x9; give .* of 32"):
        logits_shape(model, 37)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_backbones_without_a_pool_of_choice(name):
    model = abstract_model(name, features_only=True)
    assert [level.reduction for level in model.feature_info] == [2, 4, 8, 16, 32]
    with pytest.raises(InputError, match=f"unknown option of {name} 'pool'"):
        abstract_model(name, pool="binomial3")
