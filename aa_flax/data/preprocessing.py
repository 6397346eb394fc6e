"""Images as people have them to what a net takes, by its own `config`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from aa_flax.data.crops import center_image
from aa_flax.data.images import decode
from aa_flax.data.transforms import normalise
from aa_flax.errors import InputError
from aa_flax.models.backbone import Backbone
from aa_flax.models.classifier import Classifier

# A file's path, an image of PIL, or pixels uint8 `(H, W, 3)`.
OneImage = str | Path | Image.Image | np.ndarray

_normalise = jax.jit(normalise, static_argnames=("mean", "std"))


def preprocess(
    images: OneImage | Sequence[OneImage] | UInt8[np.ndarray, "N H W 3"],
    model: Classifier | Backbone,
) -> Float[Array, "N size size 3"]:
    """Images as a net takes them: resized, cropped to their middle square and normalised.

    What is done is in `model.config`. Pixels are those of this package's evaluation, and of
    torchvision's `Resize` and `CenterCrop`, to the bit.

    Args:
        images: a file's path, an image of PIL (any mode) or an array of bytes `(H, W, 3)`; several
            of these, of any sizes; or a batch of bytes `(N, H, W, 3)`.
        model: the net that they are for.

    Returns:
        A batch, float32; of one image, too.

    Raises:
        InputError: something else, or a file that cannot be read.
    """
    config = model.config
    pixels = [
        center_image(open_image(image), config.resize_size, config.input_size, config.interpolation)
        for image in _listed(images)
    ]
    return _normalise(np.stack(pixels), mean=config.mean, std=config.std)


def _listed(images: Any) -> Sequence[Any]:
    if isinstance(images, jax.Array):
        images = np.asarray(images)
    if isinstance(images, np.ndarray) and images.ndim != 4:
        return [images]
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if not isinstance(images, Sequence | np.ndarray) or not len(images):
        raise InputError(f"{_EXPECTED}, one or several; got {_described(images)}")
    return images  # pyright: ignore[reportReturnType]


_EXPECTED = "images are paths of files, images of PIL or arrays of bytes (uint8) (H, W, 3)"


def open_image(image: Any) -> Image.Image:
    """An image of any of the kinds that `preprocess` takes, in mode RGB.

    Raises:
        InputError: something else, or a file that cannot be read.
    """
    if isinstance(image, str | Path):
        try:
            return decode(Path(image).expanduser().read_bytes(), str(image))
        except OSError as error:
            raise InputError(f"cannot read image {image}: {error.strerror}") from error
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image) if isinstance(image, np.ndarray | jax.Array) else None
    if array is None or array.dtype != np.uint8 or array.shape[2:] != (3,) or not array.size:
        raise InputError(f"{_EXPECTED}; got {_described(image)}")
    return Image.fromarray(array)


def _described(thing: Any) -> str:
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return f"an array {tuple(thing.shape)} of {thing.dtype}"
    return f"{thing!r}" if isinstance(thing, list | tuple) and not thing else type(thing).__name__
