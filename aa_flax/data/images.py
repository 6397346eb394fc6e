"""One labelled image, and how its bytes become pixels: those of torchvision's `ImageFolder`."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import simplejpeg
from PIL import Image, UnidentifiedImageError

from aa_flax.errors import InputError

# One labelled image: `image`, a PIL image in mode RGB or uint8 `(H, W, 3)`; `label`, a class index.
Example = dict[str, Any]


class ImageError(InputError):
    """An image that cannot be read: the message names it."""

    def __init__(self, message: str):  # one argument, so that it travels between processes
        super().__init__(message)

    @classmethod
    def of(cls, name: str, reason: Exception) -> "ImageError":
        return cls(f"cannot read image {name}: {getattr(reason, 'strerror', None) or reason}")

    def skippable(self) -> "ImageError":
        """Returns the error with advice for callers that have `on_error`."""
        return ImageError(
            f"{self}; replace it, or go on without such images: --config.data.on_error=skip, in "
            'aa_flax.evaluate on_error="skip"'
        )


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns whatever PIL raises of a broken image into an `ImageError` that names it."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:  # whose message names a place in memory
        reason = ValueError("not an image, or its beginning is broken")
        raise ImageError.of(name, reason) from error
    except Image.DecompressionBombError as error:
        reason = ValueError(
            f"{str(error).partition(',')[0]}; to take one that large, set "
            "PIL.Image.MAX_IMAGE_PIXELS to its number of pixels, in Python or in a file of --plugin"
        )
        raise ImageError.of(name, reason) from error
    except Exception as error:
        raise ImageError.of(name, error) from error


def decode(encoded: bytes, name: str) -> Image.Image:
    """The pixels of an image file in mode RGB, as PIL's `convert("RGB")` makes them.

    Orientation tags are ignored, alpha is dropped, and 16-bit values are clipped or scaled as PIL
    does it, since that is what the published nets were trained and tested on.

    Args:
        name: of the image, for the error.

    Raises:
        ImageError: not an image, a broken one, or one of more than twice PIL's
            `Image.MAX_IMAGE_PIXELS`, which is seen before decoding.
    """
    with reading(name):
        if not encoded:
            raise ValueError("empty")
        return _decode_plain_jpeg(encoded) or Image.open(io.BytesIO(encoded)).convert("RGB")


def _decode_plain_jpeg(encoded: bytes) -> Image.Image | None:
    """PIL's bits, a quarter faster; None of what only PIL reads, or rejects properly."""
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
