"""Images without labels, as people have them: a folder, files, or arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from aa_flax.data.digest import digest, file_digest
from aa_flax.data.folder_index import EXTENSIONS
from aa_flax.data.images import Example, ImageError, decode
from aa_flax.data.natural import natural_key
from aa_flax.data.preprocessing import open_image
from aa_flax.errors import InputError

PICTURES = (str, Path, Image.Image, np.ndarray, list, tuple)  # what images may be given as
_ORIENTATION = 0x0112  # the tag of EXIF; 1: upright


class NoSource:
    """Stands for a source where every measure brings images of its own: it holds none."""

    num_classes = 0
    class_names: Sequence[str] = ()

    def name(self, index: int) -> str:
        return f"image {index}"

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Example:
        raise IndexError(index)


class Given:
    """Images that were handed over as they are, not as a path: equal to themselves alone.

    Attributes:
        images: paths, images of PIL or arrays of bytes `(H, W, 3)`; a single one counts as a list
            of one, bytes `(N, H, W, 3)` as N.
    """

    def __init__(self, images: Any):
        self.images: Sequence[Any] = _listed(images)

    def __repr__(self) -> str:
        return f"{len(self.images)} images"


def _listed(images: Any) -> Sequence[Any]:
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim != 4):
        return [images]
    if isinstance(images, list | tuple | np.ndarray):
        return images  # pyright: ignore[reportReturnType]
    raise InputError(
        "images are a folder, or a list of paths, images of PIL or arrays of bytes (H, W, 3); got "
        f"{type(images).__name__}"
    )


class Pictures:
    """Images without labels, in the natural order of their paths.

    As a `Source` each has the label that it was given, 0 at first. Orientation tags are ignored, as
    everywhere in this package (`aa_flax.data.images.decode`); `count_turned` counts them.

    Args:
        given: a folder, whose images and those of the folders below it are taken; the file of one
            image; or `Given`.
        what: the option that names them, for errors.
        below: whether images of folders below the folder count.

    Attributes:
        labels: int `(n,)`. num_classes: how many labels there may be.

    Raises:
        InputError: no such folder or file, or one without images.
    """

    def __init__(self, given: Path | Given, what: str = "--images", *, below: bool = True):
        self.folder = None if isinstance(given, Given) else given
        self._items: Sequence[Any] = (
            given.images if isinstance(given, Given) else image_paths(given, what, below=below)
        )
        if not len(self._items):
            raise InputError(f"{what}: no images were given")
        self.num_classes = 1
        self.labels: Int[np.ndarray, " n"] = np.zeros(len(self._items), np.int64)

    @property
    def class_names(self) -> Sequence[str]:
        return [str(i) for i in range(self.num_classes)]

    def label(self, labels: Int[np.ndarray, " n"], num_classes: int) -> None:
        """Gives each image a label, e.g. what a net said of it."""
        self.labels, self.num_classes = labels, num_classes

    def name(self, index: int) -> str:
        """The path of an image, or its number."""
        item = self._items[index]
        return str(item) if isinstance(item, str | Path) else f"image {index}"

    def described(self) -> dict[str, Any]:
        """Where they are and a hash of names and contents, for a record.

        Raises:
            ImageError: a file that cannot be read.
        """
        folder = self.folder
        place = {} if folder is None else {"folder": str(folder.absolute())}
        return {**place, "digest": digest("pictures", *map(self._identity, self._items))}

    def _identity(self, item: Any) -> Any:
        if not isinstance(item, str | Path):
            return np.asarray(open_image(item))
        path = Path(item).expanduser()
        name = path
        if self.folder is not None and self.folder in path.parents:
            name = path.relative_to(self.folder)
        try:
            return str(name), file_digest(path)
        except OSError as error:
            raise ImageError.of(str(path), error) from error

    def size(self, index: int) -> tuple[int, int]:
        """Width and height, without decoding a file.

        Raises:
            ImageError: a file that is no image.
        """
        item = self._items[index]
        if not isinstance(item, str | Path):
            return open_image(item).size
        try:
            with Image.open(item) as image:
                return image.size
        except Exception as error:  # PIL raises whatever a broken file leads it into
            _decoded(Path(item))  # which says it better, if it does not read it either
            raise ImageError.of(str(item), error) from error

    def count_turned(self) -> int:
        """How many files have an orientation tag that asks for turning or mirroring."""
        return sum(isinstance(item, str | Path) and _is_turned(Path(item)) for item in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        item = self._items[index]
        image = _decoded(Path(item)) if isinstance(item, str | Path) else open_image(item)
        return {"image": image, "label": int(self.labels[index])}


def image_paths(place: Path, what: str, *, below: bool = True) -> list[Path]:
    """The images of a folder in natural order; of a file, itself.

    Args:
        what: the option that names it, for errors.
        below: whether those of folders below it count.

    Raises:
        InputError: nothing is there, or no images.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError(f"no folder {place} ({what}); give a folder of images")
    files = [path for path in place.glob("**/*" if below else "*") if path.is_file()]
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if not images:
        there = f"{len(files)} files, none of which is an image" if files else "no files"
        hint = "" if below else "; folders below it are not read"
        raise InputError(
            f"{place} ({what}) holds {there}; images end in {', '.join(EXTENSIONS)}{hint}"
        )
    return sorted(images, key=lambda path: natural_key(str(path.relative_to(place))))


def _decoded(path: Path) -> Image.Image:
    try:
        encoded = path.expanduser().read_bytes()
    except OSError as error:
        raise ImageError.of(str(path), error) from error
    return decode(encoded, str(path))


def _is_turned(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # that it cannot be read shows when it is
        return False
