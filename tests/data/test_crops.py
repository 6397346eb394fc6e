import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from aa_flax import InputError
from aa_flax.data import crops
from aa_flax.data.crops import center_image, random_box, random_resized_crop, resize_short_side
from benchmarks.photos import originals
from benchmarks.reference import torchvision

steps = torchvision.transforms


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (256, 256), (232, 224), (64, 97)])
def test_evaluation_has_torchvisions_bits_for_every_kind_of_file(odd_files, resize, crop):
    reference = steps.Compose([steps.Resize(resize), steps.CenterCrop(crop)])
    for name, encoded in odd_files.items():
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        found = center_image(image, resize, crop)
        np.testing.assert_array_equal(found, reference(image), err_msg=name)


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (257, 256), (201, 1000), (7, 5)])
@pytest.mark.parametrize("crop", [224, 225])
def test_evaluation_has_torchvisions_bits_for_every_shape(size, crop, rng):
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    reference = steps.Compose([steps.Resize(256), steps.CenterCrop(crop)])
    np.testing.assert_array_equal(center_image(image, 256, crop), reference(image))
    np.testing.assert_array_equal(center_image(image, 0, crop), steps.CenterCrop(crop)(image))


def test_the_longer_side_is_rounded_down():
    assert resize_short_side(Image.new("RGB", (300, 499)), 256).size == (256, 425)  # 425.8
    assert resize_short_side(Image.new("RGB", (499, 300)), 256).size == (425, 256)


@pytest.mark.parametrize("size", [(60, 2), (2, 60), (61, 3), (3, 59), (40, 40)])
@pytest.mark.parametrize("crop", [16, 31])
def test_a_long_strip_is_resized_in_parts_with_the_same_bits(size, crop, rng, monkeypatch):
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    expected = center_image(image, 24, crop)
    monkeypatch.setattr(crops, "_AT_ONCE", 1000)
    np.testing.assert_array_equal(center_image(image, 24, crop), expected)


def test_a_strip_of_20000_by_2_pixels_takes_little_memory(rng):
    image = Image.fromarray(rng.integers(0, 256, (2, 20000, 3), np.uint8))
    tracked, resize = [], Image.Image.resize

    def tracking(self, size, *args, **options):
        tracked.append(size[0] * size[1])
        return resize(self, size, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", tracking)
        assert center_image(image, 256, 224).shape == (224, 224, 3)
    assert max(tracked) <= 2**25  # all of it would be 655 million


def test_a_strip_that_would_be_longer_than_anything_is_refused():
    with pytest.raises(InputError, match=r"its 20000 x 1 pixels would become 5120000 x 256$"):
        center_image(Image.new("RGB", (20_000, 1)), 256, 224)


def reference_boxes(width, height, count):
    """(left, top, width, height) as torchvision draws them."""
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    draw = steps.RandomResizedCrop.get_params
    boxes = np.array([draw(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(count)])
    return boxes[:, [1, 0, 3, 2]]


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (300, 80), (40, 500)])
def test_training_boxes_are_distributed_as_torchvisions(size, rng):
    count = 3000
    boxes = np.array([random_box(*size, rng) for _ in range(count)])
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= size).all()
    left, top, right, bottom = boxes.T
    found = np.stack([left, top, right - left, bottom - top], 1)
    expected = reference_boxes(*size, count)
    for ours, theirs in (*zip(found.T, expected.T, strict=True), *shares(found, expected)):
        assert stats.ks_2samp(ours, theirs, method="asymp").pvalue > 1e-3


def shares(*boxes):
    """Areas of both, and aspect ratios of both."""
    areas = [w * h for _, _, w, h in (b.T for b in boxes)]
    ratios = [w / h for _, _, w, h in (b.T for b in boxes)]
    return areas, ratios


@pytest.mark.parametrize("size", [(900, 13), (13, 900), (1, 40), (1, 1)])
def test_where_no_box_fits_the_largest_in_the_middle_is_torchvisions(size, rng):
    image = torch.empty(3, size[1], size[0])
    top, left, h, w = steps.RandomResizedCrop.get_params(image, [2.0, 2.0], [3 / 4, 4 / 3])
    box = random_box(*size, rng, scale=(2.0, 2.0))
    assert box == (left, top, left + w, top + h)


def test_training_pixels_are_torchvisions_for_the_same_box():
    photo = originals()["coffee"]
    for seed in range(20):
        left, top, right, bottom = random_box(*photo.size, np.random.default_rng(seed))
        expected = steps.functional.resized_crop(
            photo, top, left, bottom - top, right - left, [64, 64]
        )
        found = random_resized_crop(photo, 64, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, expected)
