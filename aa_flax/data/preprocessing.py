"""Images as people have them to what a net takes, by its own `config`."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from aa_flax.data.crops import center_image
from aa_flax.data.given import in_words, listed, lost, name_of, open_image
from aa_flax.data.transforms import normalise
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
        images: a file's path, an image of PIL (8 bits a channel) or an array of bytes
            `(H, W, 3)`; several of these, of any sizes; or a batch of bytes `(N, H, W, 3)`. What an
            image loses as RGB (its orientation tag, alpha, further pages) is a warning.
        model: the net that they are for.

    Returns:
        A batch, float32; of one image, too.

    Raises:
        InputError: something else, a file that cannot be read, or values of more than 8 bits.
    """
    config, given = model.config, listed(images)
    losses = lost(given)
    if losses:
        warnings.warn(in_words(losses, len(given)), stacklevel=2)
    pixels = [
        center_image(
            open_image(image, name_of(image, i)),
            config.resize_size,
            config.input_size,
            config.interpolation,
        )
        for i, image in enumerate(given)
    ]
    return _normalise(np.stack(pixels), mean=config.mean, std=config.std)
