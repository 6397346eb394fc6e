"""Folders of random images, and small models, for tests of measures on the user's own images."""

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
SMOOTH_SIDE = 19  # labels and classes of `Smooth`
KERNEL = np.random.default_rng(5).standard_normal((CROP * CROP * 3, CLASSES)).astype(np.float32)


def flat(images):
    """A linear classifier of pixels, for JAX and NumPy alike: very sensitive to shifts."""
    return images.reshape(len(images), -1) @ KERNEL


def on_host(images):
    """Returns the same logits in a function that JAX cannot trace."""
    return np.asarray(images).reshape(len(images), -1) @ KERNEL


def write(folder: Path, count: int = 6, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Writes random images `frame0.png`, ..., and returns their pixels in that order."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(3).integers(0, 256, (count, *size[::-1], 3), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"frame{i}.png")
    return pixels


def probabilities(crop: np.ndarray) -> np.ndarray:
    """Returns the probabilities of one crop, computed in float64."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    logits = ((crop / 255 - mean) / std).reshape(-1) @ KERNEL.astype(np.float64)
    e = np.exp(logits - logits.max())
    return e / e.sum()


def strided(images):
    """Returns a map with stride 4 and a receptive field of 8 rows: each cell plus half the next."""
    n, height, width, _ = images.shape
    places = jnp.asarray(images).reshape(n, height // 4, 4, width // 4, 4, 3).mean((2, 4))
    below = jnp.pad(places, ((0, 0), (0, 1), (0, 0), (0, 0)))[:, 1:]
    return places + 0.5 * below


class Smooth:
    """Smooth images; every other label is `flat`'s class of the centre crop."""

    num_classes = CLASSES
    class_names = tuple("abcdef")

    def __init__(self, count: int = 16, size: tuple[int, int] = (SMOOTH_SIDE, SMOOTH_SIDE)):
        rng = np.random.default_rng(4)
        small = rng.integers(0, 256, (count, 2, 2, 3), np.uint8)
        resized = [Image.fromarray(x).resize(size, Image.Resampling.BICUBIC) for x in small]
        self.images = np.stack([np.asarray(image) for image in resized])
        top, left = (round((n - CROP) / 2) for n in size[::-1])
        crops = self.images[:, top : top + CROP, left : left + CROP]
        own = np.array([probabilities(crop).argmax() for crop in crops])
        self.labels = np.where(np.arange(count) % 2, own, rng.integers(0, CLASSES, count))

    def name(self, index: int) -> str:
        return f"smooth {index}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return {"image": self.images[index], "label": int(self.labels[index])}
