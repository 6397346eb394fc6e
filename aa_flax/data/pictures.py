"""Images without labels, as people have them: a folder, files, or arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from aa_flax.data.digest import digest, file_digest
from aa_flax.data.folder_index import EXTENSIONS
from aa_flax.data.given import in_words, listed, lost, name_of, open_image, opened
from aa_flax.data.images import Example, ImageError
from aa_flax.data.natural import natural_key
from aa_flax.errors import InputError
from aa_flax.files import local_path
from aa_flax.runtime import log_line


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
        images: see `aa_flax.data.given.listed`.
    """

    def __init__(self, images: Any):
        self.images: Sequence[Any] = listed(images)

    def __repr__(self) -> str:
        return f"{len(self.images)} images"


class Pictures:
    """Images without labels, in the natural order of their paths.

    As a `Source` each has the label that it was given, 0 at first. `tell_lost`
    counts what they lose as RGB.

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
        return name_of(self._items[index], index)

    def described(self) -> dict[str, Any]:
        """Where they are and a hash of names and contents, for a record."""
        folder = self.folder
        place = {} if folder is None else {"folder": str(folder.absolute())}
        return {**place, "digest": digest("pictures", *map(self._identity, range(len(self))))}

    def _identity(self, index: int) -> Any:
        item = self._items[index]
        try:
            if not isinstance(item, str | Path):
                return np.asarray(open_image(item, self.name(index)))
            path = name = local_path(item, "the image")
            if self.folder is not None and self.folder in path.parents:
                name = path.relative_to(self.folder)
            return str(name), file_digest(path) if path.is_file() else ""
        except (OSError, ImageError):  # which shows when it is read
            return self.name(index)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height, without decoding a file.

        Raises:
            ImageError: a file that is no image, or values of more than 8 bits.
        """
        with opened(self._items[index], self.name(index)) as image:
            return image.size

    def tell_lost(self) -> dict[str, int]:
        """Tells what images lose as RGB, and returns it for the results: see `given.lost`."""
        found = lost(self._items)
        if found:
            log_line(in_words(found, len(self)))
        return found

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        image = open_image(self._items[index], self.name(index))
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
        raise InputError(
            f"no folder or file {place} ({what}); give a folder of images, or an image"
        )
    files = [path for path in place.glob("**/*" if below else "*") if not path.is_dir()]
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if not images:
        there = f"{len(files)} files, none of which is an image" if files else "no files"
        hint = "" if below else "; folders below it are not read"
        raise InputError(
            f"{place} ({what}) holds {there}; images end in {', '.join(EXTENSIONS)}{hint}"
        )
    return sorted(images, key=lambda path: natural_key(str(path.relative_to(place))))
