"""What is done to one image on the host: the pixels of torchvision's transforms, to the bit."""

from math import exp, log, sqrt

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

# (left, top, right, bottom) in pixels
Box = tuple[int, int, int, int]

_BILINEAR = Image.Resampling.BILINEAR


def center_image(image: Image.Image, resize_size: int, crop: int) -> UInt8[np.ndarray, "c c 3"]:
    """torchvision's `Resize(resize_size)` and `CenterCrop(crop)`; `resize_size` 0: as it is."""
    image = resize_short_side(image, resize_size)
    return np.asarray(image.crop(center_box(*image.size, crop)))


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Bilinear, antialiased; the longer side becomes `int(size * long / short)`; 0: as it is."""
    short, long = sorted(image.size)
    if size in (0, short):
        return image
    longer = int(size * long / short)
    return image.resize((size, longer) if image.width == short else (longer, size), _BILINEAR)


def center_box(width: int, height: int, size: int) -> Box:
    """The middle square of `size` pixels, at offset `round((width - size) / 2)`.

    Beyond an image that is smaller than that (cropping fills it with black), the odd pixel is on
    the right and below.
    """
    left, top = (
        round((n - size) / 2) if n >= size else -((size - n) // 2) for n in (width, height)
    )
    return left, top, left + size, top + size


def center_within(
    size: tuple[int, int], resize_size: int, outer: int, inner: int
) -> Int[np.ndarray, "2"]:
    """Where in the centre crop of `outer` pixels that of `inner` lies: (top, left).

    They are cut from the resized image, each at its own rounded offset, so this depends on the
    image: half of the difference, or a pixel beside it.

    Args:
        size: width and height of the image before it is resized.
    """
    short, long = sorted(size)
    if resize_size not in (0, short):
        longer = int(resize_size * long / short)
        size = (resize_size, longer) if size[0] == short else (longer, resize_size)
    (left, top, *_), (inner_left, inner_top, *_) = (
        center_box(*size, crop) for crop in (outer, inner)
    )
    return np.array([inner_top - top, inner_left - left], np.int32)


def random_resized_crop(
    image: Image.Image, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """torchvision's `RandomResizedCrop(size)`: a random box, resized to a square."""
    box = random_box(*image.size, rng)
    return np.asarray(image.crop(box).resize((size, size), _BILINEAR))


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A box of random area and shape at a random place (Szegedy et al. 2015, "Going deeper").

    Its share of the image's area is uniform in `scale`, its width : height log-uniform in `ratio`.
    After ten boxes that do not fit: the largest in the middle whose shape is within `ratio`.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        shape = exp(rng.uniform(log(ratio[0]), log(ratio[1])))
        w, h = round(sqrt(area * shape)), round(sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), int(left) + w, int(top) + h
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
