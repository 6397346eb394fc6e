"""What is done to a batch of images on the device: shifted crops, flips and normalisation."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from aa_flax.config import DataConfig
from aa_flax.models.model_config import IMAGENET_MEAN, IMAGENET_STD


def preprocess(batch: Mapping[str, Any], data: DataConfig) -> Float[Array, "N h w 3"]:
    """Turns a batch of bytes into what the net gets; all that is random is in the batch.

    Args:
        batch: `image` uint8 `(N, H, W, 3)`; if it holds `offset` int `(N, 2)`, images are cropped
            there to `data.crop_size`; if it holds `flip` bool `(N,)`, those are mirrored.
        data: the config's `data`.
    """
    images = batch["image"]
    if "offset" in batch:
        images = crop_at(images, batch["offset"], data.crop_size)
    if "flip" in batch:
        images = flip_where(batch["flip"], images)
    return normalise(images)


def normalise(
    images: UInt8[Array, "N H W 3"],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Float[Array, "N H W 3"]:
    """Bytes to floats of about zero mean and unit variance.

    Args:
        mean, std: of each channel, of values in 0..1; default: ImageNet's.
    """
    mean_, std_ = (jnp.array([[[values]]], jnp.float32) for values in (mean, std))
    return (images.astype(jnp.float32) / 255 - mean_) / std_


def flip_where(flip: Bool[Array, " N"], images: UInt8[Array, "N H W 3"]) -> UInt8[Array, "N H W 3"]:
    """Mirrors the images of which `flip` is true, left to right."""
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def center_crop(images: UInt8[Array, "N H W 3"], size: int) -> UInt8[Array, "N h w 3"]:
    """The middle square of `size` pixels, at offset `round((H - size) / 2)`, as in torch."""
    top, left = (round((n - size) / 2) for n in images.shape[1:3])
    return images[:, top : top + size, left : left + size]


def crop_at(
    images: UInt8[Array, "N H W 3"], offsets: Int[Array, "N 2"], size: int
) -> UInt8[Array, "N h w 3"]:
    """A square of `size` pixels from each image, at its own offset (top, left)."""

    def crop(image, offset):
        start = (offset[0], offset[1], jnp.zeros_like(offset[0]))
        return lax.dynamic_slice(image, start, (size, size, image.shape[2]))

    return jax.vmap(crop)(images, offsets)
