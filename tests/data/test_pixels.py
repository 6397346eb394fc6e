import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from scipy import stats

from aa_flax.configs import imagenet
from aa_flax.data.pixels import (
    ImageError,
    center_crop,
    center_image,
    crop_at,
    decode,
    normalise,
    preprocess_batch,
    random_box,
    random_resized_crop,
    resize_short_side,
)
from benchmarks.photos import originals
from benchmarks.reference import torchvision

transforms = torchvision.transforms


def test_every_kind_of_file_has_pils_pixels(odd_files):
    for name, encoded in odd_files.items():
        expected = Image.open(io.BytesIO(encoded)).convert("RGB")
        found = decode(encoded, name)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_plain_jpegs_are_decoded_by_the_faster_decoder(odd_files, monkeypatch):
    calls = []
    fast = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(a) or fast(*a, **k))
    for name in ("420.jpg", "grey.jpg", "progressive.jpg", "cmyk.jpg", "png.JPEG"):
        decode(odd_files[name], name)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["420.jpg", "grey.jpg", "cmyk.jpg", "rgba.png", "lossy.webp"])
@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(odd_files, name, fraction):
    encoded = odd_files[name][: int(fraction * len(odd_files[name]))]
    with pytest.raises(ImageError, match=f"cannot read image some/{name}: "):
        decode(encoded, f"some/{name}")


def test_an_empty_file_and_a_text_have_their_own_errors():
    with pytest.raises(ImageError, match=r"a\.jpg: empty"):
        decode(b"", "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: not an image"):
        decode(b"<html>", "a.jpg")


def test_damaged_jpegs_are_read_or_refused_as_by_pil(odd_files, rng):
    encoded = odd_files["420.jpg"]
    for position in rng.integers(2, len(encoded), 200):
        damaged = encoded[:position] + bytes([encoded[position] ^ 0xFF]) + encoded[position + 1 :]
        try:
            expected = np.asarray(Image.open(io.BytesIO(damaged)).convert("RGB"))
        except Exception:
            with pytest.raises(ImageError):
                decode(damaged, "damaged.jpg")
        else:
            np.testing.assert_array_equal(decode(damaged, "damaged.jpg"), expected)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_pils_limit_of_pixels_is_checked_before_decoding(monkeypatch, format):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (9, 9, 9)).save(buffer, format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.warns(Image.DecompressionBombWarning):  # as in PIL, from half the limit on
        assert decode(buffer.getvalue(), "as large as may be").size == (30, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    with pytest.raises(
        ImageError, match=r"bomb: Image size \(600 pixels\) exceeds limit of 598 pixels; to"
    ):
        decode(buffer.getvalue(), "bomb")


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (256, 256), (232, 224), (64, 97)])
def test_centre_crops_have_torchvisions_bits_for_every_kind_of_file(odd_files, resize, crop):
    reference = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])
    for name, encoded in odd_files.items():
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        found = center_image(image, resize, crop)
        np.testing.assert_array_equal(found, reference(image), err_msg=name)


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (257, 256), (201, 1000), (7, 5)])
@pytest.mark.parametrize("crop", [224, 225])
def test_centre_crops_have_torchvisions_bits_for_every_shape(size, crop, rng):
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(crop)])
    np.testing.assert_array_equal(center_image(image, 256, crop), reference(image))
    np.testing.assert_array_equal(center_image(image, 0, crop), transforms.CenterCrop(crop)(image))


def test_the_longer_side_is_rounded_down():
    assert resize_short_side(Image.new("RGB", (300, 499)), 256).size == (256, 425)  # 425.8
    assert resize_short_side(Image.new("RGB", (499, 300)), 256).size == (425, 256)


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (300, 80), (40, 500)])
def test_random_boxes_are_distributed_as_torchvisions(size, rng):
    count, image = 3000, torch.empty(3, size[1], size[0])
    torch.manual_seed(0)
    draw = transforms.RandomResizedCrop.get_params
    expected = [draw(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(count)]
    top, left, height, width = np.array(expected).T
    boxes = np.array([random_box(*size, rng) for _ in range(count)])
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= size).all()
    x0, y0, x1, y1 = boxes.T
    w, h = x1 - x0, y1 - y0
    ours = (x0, y0, w, h, w * h, w / h)
    theirs = (left, top, width, height, width * height, width / height)
    for found, reference in zip(ours, theirs, strict=True):
        assert stats.ks_2samp(found, reference, method="asymp").pvalue > 1e-3


@pytest.mark.parametrize("size", [(900, 13), (13, 900), (1, 40), (1, 1)])
def test_where_no_box_fits_the_largest_in_the_middle_is_torchvisions(size, rng):
    image = torch.empty(3, size[1], size[0])
    top, left, h, w = transforms.RandomResizedCrop.get_params(image, [2.0, 2.0], [3 / 4, 4 / 3])
    box = random_box(*size, rng, scale=(2.0, 2.0))
    assert box == (left, top, left + w, top + h)


def test_random_crops_have_torchvisions_bits_for_the_same_box():
    photo = originals()["coffee"]
    for seed in range(20):
        left, top, right, bottom = random_box(*photo.size, np.random.default_rng(seed))
        expected = transforms.functional.resized_crop(
            photo, top, left, bottom - top, right - left, [64, 64]
        )
        found = random_resized_crop(photo, 64, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(48, 48), (41, 48), (43, 45)])
def test_center_crop_and_normalisation_equal_torchvision(size, rng):
    images = rng.integers(0, 256, (3, *size, 3), np.uint8)
    normalisation = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    reference = transforms.Compose([transforms.CenterCrop(40), normalisation])
    expected = reference(torch.tensor(images).permute(0, 3, 1, 2) / 255).permute(0, 2, 3, 1)
    found = normalise(center_crop(jnp.asarray(images), 40))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_crop_at_cuts_each_image_at_its_own_offset(rng):
    images = rng.integers(0, 256, (3, 10, 12, 3), np.uint8)
    offsets = np.array([[0, 0], [2, 4], [1, 3]])
    found = crop_at(jnp.asarray(images), jnp.asarray(offsets), 8)
    for crop, image, (top, left) in zip(found, images, offsets, strict=True):
        np.testing.assert_array_equal(crop, image[top : top + 8, left : left + 8])


def test_normalisation_is_in_float32_for_any_default_type_of_jax(rng):
    images = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    expected = normalise(images)
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
        found = jax.jit(normalise)(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_batch_is_cropped_mirrored_and_normalised_by_its_entries(rng):
    data = imagenet.get_config().data
    data.crop_size = 6
    images = jnp.asarray(rng.integers(0, 256, (3, 8, 9, 3), np.uint8))
    offset, flip = np.array([[0, 0], [2, 3], [1, 2]], np.int32), np.array([False, True, True])
    found = preprocess_batch({"image": images, "offset": offset, "flip": flip}, data)
    for i, (top, left) in enumerate(offset):
        crop = images[i, top : top + 6, left : left + 6]
        expected = normalise(crop[None, :, ::-1] if flip[i] else crop[None])
        np.testing.assert_array_equal(found[i], expected[0])
    plain = preprocess_batch({"image": images}, data)
    np.testing.assert_array_equal(plain, normalise(images))
