"""Images as users give them to the input of a model, by the model's `config`."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from aa_flax.data.pixels import center_image, normalise
from aa_flax.data.unlabelled import Given, Pictures
from aa_flax.models.backbone import Backbone
from aa_flax.models.classifier import Classifier

# A file's path, a PIL image, or pixels uint8 `(H, W, 3)`.
OneImage = str | Path | Image.Image | np.ndarray

_normalise = jax.jit(normalise, static_argnames=("mean", "std"))


def preprocess(
    images: OneImage | Sequence[OneImage] | UInt8[np.ndarray, "N H W 3"],
    model: Classifier | Backbone,
) -> Float[Array, "N size size 3"]:
    """Resizes, crops and normalises images for a model, by `model.config`, to a float32 batch.

    Pixels are those of this package's evaluation, and of torchvision's `Resize` and `CenterCrop`,
    to the bit.

    Args:
        images: a file's path, a PIL image (8 bits a channel) or a uint8 array `(H, W, 3)`; several
            of these, of any sizes; or a uint8 batch `(N, H, W, 3)`. A warning reports what an image
            loses as RGB (its orientation tag, alpha, further pages).
        model: the model that they are for.

    Raises:
        InputError: something else, a file that cannot be read, or values of more than 8 bits.

    Examples:
        >>> import aa_flax, numpy as np
        >>> from flax import nnx
        >>> model = nnx.eval_shape(lambda: aa_flax.create_model("alexnet_lpf4"))
        >>> aa_flax.preprocess(np.zeros((300, 400, 3), np.uint8), model).shape
        (1, 224, 224, 3)
    """
    config, given = model.config, Pictures(Given(images))
    given.log_lost(partial(warnings.warn, stacklevel=3))
    size = (config.resize_size, config.input_size, config.interpolation)
    pixels = [center_image(given[i]["image"], *size) for i in range(len(given))]
    return _normalise(np.stack(pixels), mean=config.mean, std=config.std)
