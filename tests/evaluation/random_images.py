"""What the tests of people's own pictures share: folders of random images, and small nets."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from tests.evaluation.tiny import CLASSES, CROP

SIZES = {
    "crop_size": CROP,
    "image_size": 16,
    "resize_size": 0,
    "shift_range": 5,
    "batch_size": 4,
    "passes": 3,
}
KERNEL = np.random.default_rng(5).standard_normal((CROP * CROP * 3, CLASSES)).astype(np.float32)


def flat(images):
    """A linear classifier of pixels, for JAX and NumPy alike: as sensitive as can be."""
    return images.reshape(len(images), -1) @ KERNEL


def on_host(images):
    """The same, where JAX cannot trace it."""
    return np.asarray(images).reshape(len(images), -1) @ KERNEL


def write(folder: Path, count: int = 6, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Random images as files `frame0.png`, ...; their pixels, in the order of their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(3).integers(0, 256, (count, *size[::-1], 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"frame{i}.png")
    return pixels


def probabilities(crop: np.ndarray) -> np.ndarray:
    """Of one crop, slowly: normalised as nets take it, in float64."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    logits = ((crop / 255 - mean) / std).reshape(-1) @ KERNEL.astype(np.float64)
    e = np.exp(logits - logits.max())
    return e / e.sum()


def strided(images):
    """A map of 4 pixels a place, whose places see 8 pixels: the mean of a place and the next."""
    n, height, width, _ = images.shape
    places = jnp.asarray(images).reshape(n, height // 4, 4, width // 4, 4, 3).mean((2, 4))
    below = jnp.pad(places, ((0, 0), (0, 1), (0, 0), (0, 0)))[:, 1:]
    return places + 0.5 * below
