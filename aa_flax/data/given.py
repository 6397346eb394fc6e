"""Images as people give them: the kinds that are taken, and what reading them as RGB loses."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aa_flax.data.images import ImageError, decode, reading
from aa_flax.errors import InputError
from aa_flax.files import local_path

_EXPECTED = (
    "images are paths of files, images of PIL or arrays of bytes (uint8) (H, W, 3) or (N, H, W, 3)"
)
_ORIENTATION = 0x0112  # the tag of EXIF; 1: upright


def is_pictures(given: Any) -> bool:
    """Tells images, paths and lists of them from a labelled source."""
    return isinstance(given, str | Path | Image.Image | list | tuple) or _is_array(given)


def _is_array(given: Any) -> bool:
    return hasattr(given, "shape") and hasattr(given, "dtype")


def listed(images: Any) -> Sequence[Any]:
    """Several images, or a list of one; arrays of JAX and tensors of torch as NumPy's.

    Raises:
        InputError: something else, or none.
    """
    if _is_array(images):
        array = _pixels(images)
        return array if array.ndim == 4 else [array]  # pyright: ignore[reportReturnType]
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if not isinstance(images, Sequence) or not len(images):
        raise InputError(f"{_EXPECTED}, one or several; got {_described(images)}")
    return images


def _pixels(given: Any) -> np.ndarray:
    try:
        array = np.asarray(given)
    except Exception as error:  # e.g. of a tensor on another device; each library has its own
        raise InputError(f"{_EXPECTED}; got {_described(given)}: {error}") from error
    if array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3 and array.size:
        return array
    first = array.ndim in (3, 4) and array.shape[-3] == 3
    hint = "; if its channels come first, move them to the last axis" if first else ""
    raise InputError(f"{_EXPECTED}; got {_described(given)}{hint}")


def _described(thing: Any) -> str:
    if _is_array(thing):
        return f"an array {tuple(thing.shape)} of {thing.dtype}"
    return f"{thing!r}" if isinstance(thing, list | tuple) and not thing else type(thing).__name__


def name_of(image: Any, index: int) -> str:
    """The path of an image, or its number."""
    return str(image) if isinstance(image, str | Path) else f"image {index}"


def open_image(given: Any, name: str) -> Image.Image:
    """An image in mode RGB.

    Args:
        given: a path, an image of PIL in any mode of 8 bits, or an array uint8 `(H, W, 3)`.
        name: of the image, for errors.

    Raises:
        ImageError: it cannot be read, or has values that RGB would clip.
        InputError: something else.
    """
    with opened(given, name) as image, reading(name):
        if isinstance(given, str | Path):
            return decode(Path(given).expanduser().read_bytes(), name)
        return image.convert("RGB")


@contextmanager
def opened(given: Any, name: str) -> Iterator[Image.Image]:
    """An image as PIL opens it, of a file without decoding it; see `open_image`."""
    if isinstance(given, Image.Image):
        _check(given, name)
        yield given
    elif not isinstance(given, str | Path):
        if not _is_array(given):
            raise InputError(f"{_EXPECTED}; got {_described(given)}")
        yield Image.fromarray(_pixels(given))
    else:
        path = local_path(given, "the image")
        with reading(name):
            if path.exists() and not path.is_file():  # reading a pipe would wait
                raise ValueError("not a file, but a folder, a pipe or a device")
            if path.exists() and not path.stat().st_size:
                raise ValueError("empty")
            image = Image.open(path)
        with image:
            _check(image, name)
            yield image


def _check(image: Image.Image, name: str) -> None:
    if not all(image.size):
        raise ImageError.of(name, ValueError("it has no pixels"))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ImageError.of(
            name,
            ValueError(
                f"its values (mode {image.mode}) go beyond 8 bits and would be clipped to 0..255; "
                "scale them, and save it with 8 bits a channel"
            ),
        )


def lost(images: Iterable[Any]) -> dict[str, int]:
    """Counts the images that lose something when they are read as RGB, by what they lose.

    Those that cannot be read count for nothing here.
    """
    found = Counter[str]()
    for image in images:
        if isinstance(image, str | Path | Image.Image):
            try:
                with opened(image, "") as here, reading(""):
                    found.update(_lost(here))
            except ImageError:
                continue
    return dict(found)


def _lost(image: Image.Image) -> list[str]:
    losses = {
        "16 bits cut to 8": re.search(r";16|, 65535\)", str(getattr(image, "tile", ""))),
        "orientation tag ignored": image.getexif().get(_ORIENTATION, 1) not in (0, 1),
        "further frames or pages ignored": getattr(image, "is_animated", False),
        "CMYK converted without its profile": image.mode == "CMYK",
        "transparency dropped": image.has_transparency_data
        and image.convert("RGBA").getchannel("A").getextrema()[0] < 255,  # pyright: ignore
    }
    return [name for name, is_lost in losses.items() if is_lost]


def in_words(lost: dict[str, int], total: int) -> str:
    """Says what `lost` found of so many images."""
    found = ", ".join(f"{what} ({count})" for what, count in lost.items())
    return f"of {total} image{'s' * (total != 1)}: {found}"
