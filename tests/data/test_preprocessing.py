"""Images as `preprocess` and the evaluation prepare them, against torchvision's transforms."""

import jax
import numpy as np
import pytest
import torch
from PIL import Image

import aa_flax
from aa_flax import InputError, ModelConfig, create_model, load_torch_state_dict, preprocess
from aa_flax.config import DataConfig
from aa_flax.configs import imagenet
from aa_flax.data.batches import evaluation_batches, evaluation_example
from aa_flax.data.pixels import normalise, preprocess_batch
from aa_flax.data.sources import make_source
from aa_flax.evaluation.settings import Settings
from benchmarks.photos import write_photos
from benchmarks.reference import (
    abstract_model,
    compiled,
    reference_model,
    relative_difference,
    torchvision,
)

transforms = torchvision.transforms


@pytest.fixture(scope="module")
def model():
    return abstract_model("mobilenet_v2_lpf4")


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
def test_pixels_of_an_evaluation_are_torchvisions(pixels, interpolation):
    mode = transforms.InterpolationMode(interpolation)
    transform = transforms.Compose([transforms.Resize(60, mode), transforms.CenterCrop(48)])
    settings = Settings(
        resize_size=60, interpolation=interpolation, image_size=52, crop_size=48, shift_range=5
    )
    (batch,) = settings.batches(One(pixels), 48)
    np.testing.assert_array_equal(batch["image"][0], transform(Image.fromarray(pixels)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_models_own_config_is_used(pixels, interpolation):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    model = abstract_model("mobilenet_v2")
    model.config = ModelConfig(75, 90, interpolation, mean, std)
    resize = transforms.Resize(90, transforms.InterpolationMode(interpolation))
    steps = (resize, transforms.CenterCrop(75), transforms.ToTensor())
    transform = transforms.Compose([*steps, transforms.Normalize(mean, std)])
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
            r"uint8 arrays \(H, W, 3\) or \(N, H, W, 3\); got an array .*float32",
        ),
        (np.zeros((8, 8), np.uint8), r"got an array \(8, 8\) of uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got an array \(0, 8, 8, 3\)"),
        ([], r"one or several; got \[\]"),
        (3, "one or several; got int"),
        ([None], "got NoneType"),
        ("nowhere.jpg", r"cannot read image nowhere\.jpg: No such file"),
        (__file__, r"cannot read image .*test_preprocessing\.py: not an image"),
    ],
)
def test_something_else_is_refused(model, given, message):
    with pytest.raises(InputError, match=message):
        preprocess(given, model)


def test_every_logit_has_a_name():
    names = aa_flax.imagenet_class_names()
    meta = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta
    assert names == meta["categories"]


COUNT, BATCH = 208, 26
NORMALISE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "val", COUNT)


def reference_batches(folder, resize, crop):
    steps = [transforms.Resize(resize), transforms.CenterCrop(crop), transforms.PILToTensor()]
    images = torchvision.datasets.ImageFolder(folder, transforms.Compose(steps))
    return torch.utils.data.DataLoader(images, BATCH)


def our_batches(folder, resize, crop):
    data = imagenet.get_config().data
    data.update({"path": str(folder.parent), "resize_size": resize})
    batches = evaluation_batches(make_source(data, "val"), BATCH, data, crop=crop)
    normalised = jax.jit(lambda batch: preprocess_batch(batch, data))
    return ((batch, normalised(batch)) for batch in batches)


@pytest.mark.slow
@pytest.mark.parametrize(("resize", "crop"), [(128, 112), (256, 224)])
def test_every_photograph_has_the_originals_pixels_logits_and_class(photos, resize, crop):
    reference = reference_model("resnet18_lpf4")
    model = create_model("resnet18_lpf4")
    load_torch_state_dict(model, {name: x.numpy() for name, x in reference.state_dict().items()})
    logits = compiled(model)
    found, expected = [], []
    for (batch, images), (pixels, labels) in zip(
        our_batches(photos, resize, crop), reference_batches(photos, resize, crop), strict=True
    ):
        np.testing.assert_array_equal(batch["image"], pixels.permute(0, 2, 3, 1))
        np.testing.assert_array_equal(batch["label"], labels)
        found += list(np.asarray(logits(images)))
        with torch.no_grad():
            expected += list(reference(NORMALISE(pixels / 255)).numpy())
    found, expected = np.stack(found), np.stack(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_difference(ours, theirs) <= 1e-5
    # A random model prefers a few classes; without its mean logits, it distinguishes photographs.
    for mean in (0, np.mean(expected, 0)):
        classes = (expected - mean).argmax(1)
        np.testing.assert_array_equal((found - mean).argmax(1), classes)
    assert len(set(classes.tolist())) > 30
