"""What is done to one image on the host: the pixels of torchvision's transforms, to the bit."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# (left, top, right, bottom) in pixels
Box = tuple[int, int, int, int]


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Bilinear, antialiased; the longer side becomes `int(size * long / short)`; 0: as it is."""
    width, height = image.size
    short, long = sorted(image.size)
    if size == 0 or short == size:
        return image
    longer = int(size * long / short)
    shape = (size, longer) if width <= height else (longer, size)
    return image.resize(shape, Image.Resampling.BILINEAR)


def center_box(image: Image.Image, size: int) -> Box:
    """The middle square of `size` pixels, at offset `round((width - size) / 2)`.

    Of an image that is smaller than that, it reaches beyond both edges.
    """
    left, top = (round((n - size) / 2) if n >= size else -((size - n) // 2) for n in image.size)
    return left, top, left + size, top + size


def pixels(image: Image.Image, box: Box) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels within a box; black where it reaches beyond the image."""
    return np.asarray(image.crop(box))


def evaluation_image(image: Image.Image, resize_size: int, crop: int) -> UInt8[np.ndarray, "c c 3"]:
    """torchvision's `Resize(resize_size)` and `CenterCrop(crop)`."""
    image = resize_short_side(image, resize_size)
    return pixels(image, center_box(image, crop))
