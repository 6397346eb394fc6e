"""Images without labels, as users give them: a folder, files, PIL images or arrays."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from aa_flax.data.cache import digest, file_digest
from aa_flax.data.folder import EXTENSIONS, natural_key
from aa_flax.data.pixels import Example, ImageError, decode, described, reading
from aa_flax.errors import InputError
from aa_flax.files import local_path
from aa_flax.runtime import log_line

_EXPECTED = "images are paths of files, PIL images or uint8 arrays (H, W, 3) or (N, H, W, 3)"
_ORIENTATION = 0x0112  # the tag of EXIF; 1: upright


class NoSource:
    """An empty source, for measures that all have their own images."""

    num_classes = 0
    class_names: Sequence[str] = ()

    def name(self, index: int) -> str:
        return f"image {index}"

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Example:
        raise IndexError(index)


class Given:
    """Images given as objects instead of a path; equal only to itself."""

    def __init__(self, images: Any):
        self.images: Sequence[Any] = listed(images)

    def __repr__(self) -> str:
        return f"{len(self.images)} images"


class Pictures:
    """Images without labels, in the natural order of their paths.

    As a `Source`, each image has the label set by `label`, 0 at first.

    Args:
        given: a folder, for its images and those of the folders below it; the file of one image; or
            `Given`.
        option: the option that they are from, for errors.
        below: whether images of folders below the folder count.
    """

    def __init__(self, given: Path | Given, option: str = "--images", *, below: bool = True):
        self.folder = None if isinstance(given, Given) else given
        self._items: Sequence[Any] = (
            given.images if isinstance(given, Given) else _image_paths(given, option, below=below)
        )
        self.num_classes = 1
        self.labels: Int[np.ndarray, " n"] = np.zeros(len(self._items), np.int64)

    @property
    def class_names(self) -> Sequence[str]:
        return [str(i) for i in range(self.num_classes)]

    def label(self, labels: Int[np.ndarray, " n"], num_classes: int) -> None:
        """Sets the label of each image, e.g. to a model's prediction."""
        self.labels, self.num_classes = labels, num_classes

    def name(self, index: int) -> str:
        """Returns the path of an image, or its number."""
        item = self._items[index]
        return str(item) if isinstance(item, str | Path) else f"image {index}"

    def described(self) -> dict[str, Any]:
        """Returns the folder and a hash of names and contents, for a record."""
        folder = {} if self.folder is None else {"folder": str(self.folder.absolute())}
        return {**folder, "digest": digest("pictures", *map(self._identity, range(len(self))))}

    def _identity(self, index: int) -> Any:
        item = self._items[index]
        try:
            if not isinstance(item, str | Path):
                return np.asarray(open_image(item, self.name(index)))
            path = name = local_path(item, "the image")
            if self.folder is not None and self.folder in path.parents:
                name = path.relative_to(self.folder)
            return str(name), file_digest(path) if path.is_file() else ""
        except (OSError, ImageError):  # reported when the image is read
            return self.name(index)

    def size(self, index: int) -> tuple[int, int]:
        """Returns width and height, without decoding a file."""
        with opened(self._items[index], self.name(index)) as image:
            return image.size

    def log_lost(self, log: Callable[[str], Any] = log_line) -> dict[str, int]:
        """Logs and returns what the images lose as RGB: see `lost`."""
        if found := lost(self._items):
            losses = ", ".join(f"{what} ({count})" for what, count in found.items())
            log(f"of {len(self)} image{'s' * (len(self) != 1)}: {losses}")
        return found

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        image = open_image(self._items[index], self.name(index))
        return {"image": image, "label": int(self.labels[index])}


def _image_paths(place: Path, option: str, *, below: bool) -> list[Path]:
    """Returns the images of a folder in natural order; or the file itself."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError(
            f"no folder or file {place} ({option}); give a folder of images, or an image"
        )
    files = [path for path in place.glob("**/*" if below else "*") if not path.is_dir()]
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if not images:
        there = f"{len(files)} files, none of which is an image" if files else "no files"
        hint = "" if below else "; folders below it are not read"
        raise InputError(
            f"{place} ({option}) contains {there}; images end in {', '.join(EXTENSIONS)}{hint}"
        )
    return sorted(images, key=lambda path: natural_key(str(path.relative_to(place))))


def is_pictures(given: Any) -> bool:
    """Checks for images, paths or lists of them, as opposed to a labelled source."""
    return isinstance(given, str | Path | Image.Image | list | tuple) or _is_array(given)


def _is_array(given: Any) -> bool:
    return hasattr(given, "shape") and hasattr(given, "dtype")


def listed(images: Any) -> Sequence[Any]:
    """Returns several images, or a list of one; arrays of JAX and torch tensors as NumPy's."""
    if _is_array(images):
        array = _pixels(images)
        return array if array.ndim == 4 else [array]  # pyright: ignore[reportReturnType]
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if not isinstance(images, Sequence) or not len(images):
        raise InputError(f"{_EXPECTED}, one or several; got {described(images)}")
    return images


def _pixels(given: Any) -> np.ndarray:
    try:
        array = np.asarray(given)
    except Exception as error:  # e.g. for a tensor on another device; each library has its own
        raise InputError(f"{_EXPECTED}; got {described(given)}: {error}") from error
    if array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3 and array.size:
        return array
    first = array.ndim in (3, 4) and array.shape[-3] == 3
    hint = "; if its channels come first, move them to the last axis" if first else ""
    raise InputError(f"{_EXPECTED}; got {described(given)}{hint}")


def open_image(given: Any, name: str) -> Image.Image:
    """Opens an image in mode RGB: a path, a PIL image, or an array uint8 `(H, W, 3)`.

    It is an ImageError if it cannot be read, or has values of more than 8 bits.
    """
    with opened(given, name) as image, reading(name):
        if isinstance(given, str | Path):
            return decode(Path(given).expanduser().read_bytes(), name)
        return image.convert("RGB")


@contextmanager
def opened(given: Any, name: str) -> Iterator[Image.Image]:
    """Opens an image without decoding a file; see `open_image`."""
    if isinstance(given, Image.Image):
        _check(given, name)
        yield given
    elif not isinstance(given, str | Path):
        if not _is_array(given):
            raise InputError(f"{_EXPECTED}; got {described(given)}")
        yield Image.fromarray(_pixels(given))
    else:
        path = local_path(given, "the image")
        with reading(name):
            if path.exists() and not path.is_file():  # reading a pipe would wait
                raise ImageError.of(name, "not a file, but a folder, a pipe or a device")
            if path.exists() and not path.stat().st_size:
                raise ImageError.of(name, "empty")
            image = Image.open(path)
        with image:
            _check(image, name)
            yield image


def _check(image: Image.Image, name: str) -> None:
    if not all(image.size):
        raise ImageError.of(name, "it has no pixels")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        reason = (
            f"its values (mode {image.mode}) go beyond 8 bits and would be clipped to 0..255; "
            "scale them, and save it with 8 bits a channel"
        )
        raise ImageError.of(name, reason)


def lost(images: Iterable[Any]) -> dict[str, int]:
    """Counts the readable images that lose something as RGB, by what they lose."""
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
