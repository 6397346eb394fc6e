"""What `preprocess` gives a net is what the evaluation gives it, and what torchvision would."""

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import aa_flax
from aa_flax import InputError, ModelConfig, create_model, preprocess
from aa_flax.config import DataConfig
from aa_flax.data.batches import evaluation_example
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.settings import Settings
from benchmarks.reference import torchvision


@pytest.fixture(scope="module")
def model():
    return nnx.eval_shape(lambda: create_model("mobilenet_v2_lpf4"))


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (333, 270, 3), np.uint8)


class One:
    """A source of one image."""

    num_classes, class_names = 1, ("a",)

    def __init__(self, image):
        self.image = image

    def __len__(self):
        return 1

    def name(self, index):
        return "image"

    def __getitem__(self, index):
        return {"image": self.image, "label": 0}


def test_pixels_are_the_evaluations_to_the_bit(model, pixels, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    example = evaluation_example(One(pixels), DataConfig(), 224, 0)
    expected = jax.jit(normalise)(example["image"][None])
    for given in (pixels, Image.fromarray(pixels), path, str(path), [path, pixels][:1]):
        np.testing.assert_array_equal(preprocess(given, model), expected)
    for several in (pixels[None].repeat(2, 0), [path, pixels], (pixels, Image.fromarray(pixels))):
        found = preprocess(several, model)
        assert (found.shape, found.dtype) == ((2, 224, 224, 3), "float32")
        np.testing.assert_array_equal(found[1], expected[0])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_evaluations_pixels_are_those_of_torchvisions_transforms(pixels, interpolation):
    transforms = torchvision.transforms
    mode = transforms.InterpolationMode(interpolation)
    transform = transforms.Compose([transforms.Resize(60, mode), transforms.CenterCrop(48)])
    settings = Settings(
        resize_size=60, interpolation=interpolation, image_size=52, crop_size=48, shift_range=5
    )
    (batch,) = settings.batches(One(pixels), 48)
    np.testing.assert_array_equal(batch["image"][0], transform(Image.fromarray(pixels)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_nets_own_config_is_torchvisions_transforms(pixels, interpolation):
    transforms = torchvision.transforms
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    model = nnx.eval_shape(lambda: create_model("mobilenet_v2"))
    model.config = ModelConfig(75, 90, interpolation, mean, std)
    transform = transforms.Compose(
        [
            transforms.Resize(90, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(75),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    expected = transform(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(preprocess(pixels, model)[0], expected, atol=2e-6)


def test_modes_that_are_not_rgb_are_converted(model, pixels):
    grey = Image.fromarray(pixels).convert("L")
    np.testing.assert_array_equal(preprocess(grey, model), preprocess(grey.convert("RGB"), model))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((2, 8, 8, 3), np.float32),
            r"\(uint8\) \(H, W, 3\) or \(N, H, W, 3\); got an array .*float32",
        ),
        (np.zeros((8, 8), np.uint8), r"got an array \(8, 8\) of uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got an array \(0, 8, 8, 3\)"),
        ([], r"one or several; got \[\]"),
        (3, "one or several; got int"),
        ([None], "got NoneType"),
        ("nowhere.jpg", r"cannot read image nowhere\.jpg: No such file"),
    ],
)
def test_what_is_no_image_is_told(model, given, message):
    with pytest.raises(InputError, match=message):
        preprocess(given, model)


def test_a_file_that_is_no_image_is_named(model, tmp_path):
    (tmp_path / "a.jpg").write_text("no")
    with pytest.raises(InputError, match=r"cannot read image .*a\.jpg: not an image"):
        preprocess(tmp_path / "a.jpg", model)


def test_every_logit_has_a_name():
    names = aa_flax.imagenet_class_names()
    meta = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta
    assert names == meta["categories"]
