"""scikit-learn's handwritten digits: data for the quickstart and for tests, without files."""

from typing import Any

import numpy as np
from PIL import Image

from aa_flax.data.digest import digest
from aa_flax.data.images import Example
from aa_flax.errors import InputError


class Digits:
    """scikit-learn's 1797 handwritten digits (UCI, 8x8 grey), with room to shift them.

    Each is enlarged four times (bicubic) to 32x32 and placed in the middle of a black canvas. The
    last 450 images are held out; their writers do not appear in the others.

    Args:
        split: `train` or `val`, the held out.
        image_size: side of the canvas in pixels, at least 32.

    Raises:
        InputError: a smaller canvas.
    """

    num_classes = 10
    class_names = tuple("0123456789")
    _HELD_OUT = 450
    _DIGIT_SIZE = 32

    def __init__(self, split: str, image_size: int = 48):
        from sklearn.datasets import load_digits

        if image_size < self._DIGIT_SIZE:
            raise InputError(
                f"digits are {self._DIGIT_SIZE} pixels wide, got image_size {image_size}"
            )
        part = slice(-self._HELD_OUT, None) if split == "val" else slice(None, -self._HELD_OUT)
        loaded: Any = load_digits(return_X_y=True)
        digits, labels = loaded
        self._labels = labels[part]
        self._images = np.stack([self._enlarge(digit, image_size) for digit in digits[part]])

    def _enlarge(self, digit: np.ndarray, image_size: int) -> np.ndarray:
        grey = Image.fromarray((digit.reshape(8, 8) * (255 / 16)).round().astype(np.uint8))
        grey = grey.resize((self._DIGIT_SIZE, self._DIGIT_SIZE), Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", (image_size, image_size))
        margin = (image_size - self._DIGIT_SIZE) // 2
        canvas.paste(grey, (margin, margin))
        return np.asarray(canvas)

    def name(self, index: int) -> str:
        return f"digit {index}"

    def digest(self) -> str:
        """A hash of the images and their labels."""
        return digest("digits", self._images, self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return {"image": self._images[index], "label": int(self._labels[index])}
