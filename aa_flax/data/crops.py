"""What is done to one image on the host: the pixels of torchvision's transforms, to the bit."""

from math import exp, log, sqrt

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from aa_flax.errors import InputError
from aa_flax.models.model_config import Interpolation

# (left, top, right, bottom) in pixels
Box = tuple[int, int, int, int]

_AT_ONCE = 2**25  # pixels that are resized at once: 128 MB
_LONGEST = 2**22  # pixels of a side: beyond, it would also take minutes

_BILINEAR = Image.Resampling.BILINEAR
_FILTERS = {"bilinear": _BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def center_image(
    image: Image.Image, resize_size: int, crop: int, interpolation: Interpolation = "bilinear"
) -> UInt8[np.ndarray, "c c 3"]:
    """torchvision's `Resize(resize_size)` and `CenterCrop(crop)`; `resize_size` 0: as it is.

    Raises:
        InputError: the image is so narrow that resizing would make it millions of pixels long.
    """
    size = resized_size(image.size, resize_size)
    box = center_box(*size, crop)
    if size[0] * size[1] > _AT_ONCE:
        return np.asarray(_part_of_resized(image, size, box, _FILTERS[interpolation]))
    return np.asarray(resize_short_side(image, resize_size, interpolation).crop(box))


def resize_short_side(
    image: Image.Image, size: int, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """Antialiased; the longer side becomes `int(size * long / short)`; 0: as it is."""
    wanted = resized_size(image.size, size)
    return image if wanted == image.size else image.resize(wanted, _FILTERS[interpolation])


def resized_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Width and height that `resize_short_side` gives."""
    short, long = sorted(size)
    if short_side in (0, short):
        return size
    longer = int(short_side * long / short)
    return (short_side, longer) if size[0] == short else (longer, short_side)


def _part_of_resized(
    image: Image.Image, size: tuple[int, int], box: Box, resampling: Image.Resampling
) -> Image.Image:
    """`image.resize(size).crop(box)` in bounded memory, for a strip that gets very long.

    PIL resizes all rows, each by itself, and then all columns: so a few at a time give its bits.
    """
    if max(size) > _LONGEST:
        raise InputError(
            f"its {image.width} x {image.height} pixels would become {size[0]} x {size[1]}"
        )
    (width, height), (left, top, right, bottom) = size, box
    rows = Image.new("RGB", (right - left, image.height))
    step = max(1, _AT_ONCE // width)
    for y in range(0, image.height, step):
        few = image.crop((0, y, image.width, min(y + step, image.height)))
        few = few.resize((width, few.height), resampling)
        rows.paste(few.crop((left, 0, right, few.height)), (0, y))
    part = Image.new("RGB", (right - left, bottom - top))
    step = max(1, _AT_ONCE // height)
    for x in range(0, rows.width, step):
        few = rows.crop((x, 0, min(x + step, rows.width), rows.height))
        few = few.resize((few.width, height), resampling)
        part.paste(few.crop((0, top, few.width, bottom)), (x, 0))
    return part


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
    size = resized_size(size, resize_size)
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
