"""From the bytes of an image file to the model's input: decode, resize, crop, flip, normalise.

Decoding, resizing and cropping on the host have the bits of PIL and of torchvision's transforms.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import exp, log, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from jax import lax
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, UnidentifiedImageError

from aa_flax.config import DataConfig
from aa_flax.errors import InputError, cause
from aa_flax.models.model_config import IMAGENET_MEAN, IMAGENET_STD, Interpolation

# One labelled image: `image`, a PIL image in mode RGB or uint8 `(H, W, 3)`; `label`, a class index.
Example = dict[str, Any]

# (left, top, right, bottom) in pixels
Box = tuple[int, int, int, int]

_BILINEAR = Image.Resampling.BILINEAR
_FILTERS = {"bilinear": _BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class ImageError(InputError):
    """An image that cannot be read; the message names it."""

    @classmethod
    def of(cls, name: str, reason: Exception | str) -> "ImageError":
        return cls(f"cannot read image {name}: {cause(reason)}")

    def skippable(self) -> "ImageError":
        """Returns the error with advice for callers that have `on_error`."""
        return ImageError(
            f"{self}; replace it, or go on without such images: --config.data.on_error=skip, in "
            'aa_flax.evaluate on_error="skip"'
        )


def described(thing: Any) -> str:
    """Returns a few words about a value that is not the image or example it should be."""
    if isinstance(thing, Image.Image):
        return f"a PIL image in mode {thing.mode}"
    if isinstance(thing, dict):
        return "{" + ", ".join(f"{key}: {described(value)}" for key, value in thing.items()) + "}"
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return f"an array {tuple(thing.shape)} of {thing.dtype}"
    return f"{thing!r}" if thing in ([], ()) else type(thing).__name__


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns every exception that PIL raises for a broken image into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:  # whose message names a memory address
        raise ImageError.of(name, "not an image, or its beginning is broken") from error
    except Image.DecompressionBombError as error:
        reason = (
            f"{str(error).partition(',')[0]}; to accept one that large, set "
            "PIL.Image.MAX_IMAGE_PIXELS to its number of pixels, in Python or in a file of --plugin"
        )
        raise ImageError.of(name, reason) from error
    except Exception as error:
        raise ImageError.of(name, error) from error


def decode(encoded: bytes, name: str) -> Image.Image:
    """Decodes an image file to mode RGB, with the bits of PIL's `convert("RGB")`.

    Orientation tags are ignored, alpha is dropped, and 16-bit values are clipped or scaled as PIL
    does, since the published models were trained and tested on such pixels.

    Raises:
        ImageError: the file, called `name`, is not an image, is broken, or has more than twice
            PIL's `Image.MAX_IMAGE_PIXELS`, which is checked before decoding.
    """
    if not encoded:
        raise ImageError.of(name, "empty")
    with reading(name):
        return _decode_plain_jpeg(encoded) or Image.open(io.BytesIO(encoded)).convert("RGB")


def _decode_plain_jpeg(encoded: bytes) -> Image.Image | None:
    """Decodes a JPEG a quarter faster than PIL; None: PIL must decode it, or report the error."""
    if not encoded.startswith(b"\xff\xd8"):
        return None
    try:
        header: Any = simplejpeg.decode_jpeg_header(encoded)
        height, width, colours, _ = header
        limit = Image.MAX_IMAGE_PIXELS
        if colours not in ("YCbCr", "Gray", "RGB") or (limit and width * height > limit):
            return None
        return Image.fromarray(simplejpeg.decode_jpeg(encoded, strict=True))
    except ValueError:
        return None


def resized_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Returns the width and height that `resize_short_side` gives."""
    short, long = sorted(size)
    if short_side in (0, short):
        return size
    longer = int(short_side * long / short)
    return (short_side, longer) if size[0] == short else (longer, short_side)


def resize_short_side(
    image: Image.Image, size: int, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """Resizes the short side as torchvision's `Resize(size)`, antialiased; 0: returns the image."""
    wanted = resized_size(image.size, size)
    return image if wanted == image.size else image.resize(wanted, _FILTERS[interpolation])


def center_box(width: int, height: int, size: int) -> Box:
    """Returns the middle square of `size` pixels, at offset `round((width - size) / 2)`.

    If the image is smaller than that, cropping pads it with black; the odd pixel of padding is on
    the right and below, as in torchvision's `CenterCrop`.
    """
    left, top = (
        round((n - size) / 2) if n >= size else -((size - n) // 2) for n in (width, height)
    )
    return left, top, left + size, top + size


def center_image(
    image: Image.Image, resize_size: int, crop: int, interpolation: Interpolation = "bilinear"
) -> UInt8[np.ndarray, "c c 3"]:
    """Applies torchvision's `Resize(resize_size)` (0: none) and `CenterCrop(crop)`."""
    image = resize_short_side(image, resize_size, interpolation)
    return np.asarray(image.crop(center_box(*image.size, crop)))


def center_within(
    size: tuple[int, int], resize_size: int, outer: int, inner: int
) -> Int[np.ndarray, "2"]:
    """Returns the offset (top, left) of the centre crop of `inner` pixels in that of `outer`.

    Both are cut from the resized image, each at its own rounded offset. So this depends on the size
    of the image: it is half of the difference, or one pixel off.
    """
    size = resized_size(size, resize_size)
    left, top, *_ = center_box(*size, outer)
    inner_left, inner_top, *_ = center_box(*size, inner)
    return np.array([inner_top - top, inner_left - left], np.int32)


def random_resized_crop(
    image: Image.Image, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Applies torchvision's `RandomResizedCrop(size)`: a random box, resized to a square."""
    cut = image.crop(random_box(*image.size, rng))
    return np.asarray(cut.resize((size, size), _BILINEAR))


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws a box of random area, aspect ratio and position (Szegedy et al. 2015).

    The fraction of the image's area is uniform in `scale`, width / height log-uniform in `ratio`.
    After ten boxes that do not fit, it is the largest in the middle with a ratio in `ratio`.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = exp(rng.uniform(log(ratio[0]), log(ratio[1])))
        w, h = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


# From here on: batches, on the device.


def preprocess_batch(batch: Mapping[str, Any], data: DataConfig) -> Float[Array, "N h w 3"]:
    """Crops, mirrors and normalises a batch; its random choices are in the batch.

    In `batch`, `image` is uint8 `(N, H, W, 3)`. With `offset` int `(N, 2)`, images are cropped
    there to `data.crop_size`; with `flip` bool `(N,)`, those images are mirrored.
    """
    images = batch["image"]
    if "offset" in batch:
        images = crop_at(images, batch["offset"], data.crop_size)
    if "flip" in batch:
        images = jnp.where(batch["flip"][:, None, None, None], images[:, :, ::-1], images)
    return normalise(images)


def normalise(
    images: UInt8[Array, "N H W 3"],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Float[Array, "N H W 3"]:
    """Converts uint8 images to floats by the mean and deviation of each channel, in 0..1."""
    mean_, std_ = (jnp.array([[[values]]], jnp.float32) for values in (mean, std))
    return (images.astype(jnp.float32) / 255 - mean_) / std_


def center_crop(images: UInt8[Array, "N H W 3"], size: int) -> UInt8[Array, "N h w 3"]:
    """Cuts the square of `center_box` from each image; images are at least that large."""
    left, top, right, bottom = center_box(images.shape[2], images.shape[1], size)
    return images[:, top:bottom, left:right]


def crop_at(
    images: UInt8[Array, "N H W 3"], offsets: Int[Array, "N 2"], size: int
) -> UInt8[Array, "N h w 3"]:
    """Cuts a square of `size` pixels from each image, at its own offset (top, left)."""

    def crop(image, offset):
        start = (offset[0], offset[1], jnp.zeros_like(offset[0]))
        return lax.dynamic_slice(image, start, (size, size, image.shape[2]))

    return jax.vmap(crop)(images, offsets)
