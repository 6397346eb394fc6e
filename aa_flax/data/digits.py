"""scikit-learn's handwritten digits: data for the quickstart and for tests, without files."""

from typing import Any

import numpy as np
from PIL import Image

from aa_flax.data.cache import digest
from aa_flax.data.pixels import Example
from aa_flax.errors import InputError

_VALIDATION = 450  # images
_SIDE = 32  # pixels


class Digits:
    """scikit-learn's 1797 handwritten digits (UCI, 8x8 grey), with a margin to shift them.

    Each is enlarged four times (bicubic) to 32x32 and centred on a black canvas. The last 450
    images are for validation; their writers do not appear in the others.

    Args:
        split: `train` or `val`.
        image_size: side of the canvas in pixels, at least 32.

    Raises:
        InputError: a smaller canvas.
    """

    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(self, split: str, image_size: int = 48):
        from sklearn.datasets import load_digits

        if image_size < _SIDE:
            raise InputError(f"digits are {_SIDE} pixels wide, got image_size {image_size}")
        part = slice(-_VALIDATION, None) if split == "val" else slice(None, -_VALIDATION)
        loaded: Any = load_digits(return_X_y=True)
        digits, labels = loaded
        self._labels = labels[part]
        self._images = np.stack([_enlarged(digit, image_size) for digit in digits[part]])

    def name(self, index: int) -> str:
        return f"digit {index}"

    def digest(self) -> str:
        """Returns a hash of the images and their labels."""
        return digest("digits", self._images, self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": self._images[index], "label": int(self._labels[index])}


def _enlarged(digit: np.ndarray, image_size: int) -> np.ndarray:
    grey = Image.fromarray((digit.reshape(8, 8) * (255 / 16)).round().astype(np.uint8))
    canvas = Image.new("RGB", (image_size, image_size))
    margin = (image_size - _SIDE) // 2
    canvas.paste(grey.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (margin, margin))
    return np.asarray(canvas)
