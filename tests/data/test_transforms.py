import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aa_flax.configs import imagenet
from aa_flax.data.transforms import center_crop, crop_at, normalise, preprocess
from benchmarks.reference import torchvision


@pytest.mark.parametrize("size", [(48, 48), (41, 48), (43, 45)])
def test_center_crop_and_normalisation_equal_torchvision(size, rng):
    images = rng.integers(0, 256, (3, *size, 3), np.uint8)
    steps = torchvision.transforms
    reference = steps.Compose(
        [steps.CenterCrop(40), steps.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    expected = reference(torch.tensor(images).permute(0, 3, 1, 2) / 255).permute(0, 2, 3, 1)
    found = normalise(center_crop(jnp.asarray(images), 40))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_crop_at_cuts_each_image_at_its_own_offset(rng):
    images = rng.integers(0, 256, (3, 10, 12, 3), np.uint8)
    offsets = np.array([[0, 0], [2, 4], [1, 3]])
    found = crop_at(jnp.asarray(images), jnp.asarray(offsets), 8)
    for crop, image, (top, left) in zip(found, images, offsets, strict=True):
        np.testing.assert_array_equal(crop, image[top : top + 8, left : left + 8])


def test_normalisation_is_in_float32_whatever_jax_is_told(rng):
    images = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    expected = normalise(images)
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
        found = jax.jit(normalise)(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_batch_is_cropped_mirrored_and_normalised_as_it_says(rng):
    data = imagenet.get_config().data
    data.crop_size = 6
    images = jnp.asarray(rng.integers(0, 256, (3, 8, 9, 3), np.uint8))
    offset, flip = np.array([[0, 0], [2, 3], [1, 2]], np.int32), np.array([False, True, True])
    found = preprocess({"image": images, "offset": offset, "flip": flip}, data)
    for i, (top, left) in enumerate(offset):
        crop = images[i, top : top + 6, left : left + 6]
        expected = normalise(crop[None, :, ::-1] if flip[i] else crop[None])
        np.testing.assert_array_equal(found[i], expected[0])
    plain = preprocess({"image": images}, data)
    np.testing.assert_array_equal(plain, normalise(images))
