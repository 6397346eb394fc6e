"""Images in a tree of folders: `<path>/train/<class>/*` and `<path>/val/<class>/*`."""

import os
from pathlib import Path

import numpy as np

from aa_flax.data.classes import check_classes_agree, classes_in_order
from aa_flax.data.digest import digest
from aa_flax.data.folder_index import EXTENSIONS, class_folders, load_index
from aa_flax.data.images import Example, ImageError, decode
from aa_flax.errors import InputError
from aa_flax.files import local_path, read_file

_SPLITS = ("train", "val")


class ImageFolder:
    """Images in the order of torchvision's `ImageFolder`, and with its pixels.

    Args:
        path: the folder that holds `train/` and `val/`.
        split: `train` or `val`.
        class_order: see `classes_in_order`.

    Raises:
        InputError: a folder that is missing, empty or unreadable, or classes that differ between
            `train` and `val` (unless `class_order` is a file or `imagenet`).
    """

    def __init__(self, path: str, split: str, class_order: str = ""):
        self._root = _split_folder(path, split)
        self._index = load_index(self._root)
        found = self._index.classes
        if class_order in ("", "sorted"):
            _check_other_split(self._root, found)
            self._check_none_empty()
        self.class_names = classes_in_order(class_order, found, str(self._root))
        self.num_classes = len(self.class_names)
        place = {name: i for i, name in enumerate(self.class_names)}
        labels = np.array([place[name] for name in found], np.int32)
        self._labels = labels[self._index.class_of]
        if not len(self):
            raise InputError(f"{self._root} holds no images ({', '.join(EXTENSIONS)})")

    def _check_none_empty(self) -> None:
        counts = np.bincount(self._index.class_of, minlength=len(self._index.classes))
        if not counts.all():
            empty = [self._index.classes[i] for i in np.flatnonzero(counts == 0)]
            raise InputError(
                f"no images in {len(empty)} class folders of {self._root}: "
                f"{', '.join(empty[:5])}; fill or remove them (images end in "
                f"{', '.join(EXTENSIONS)})"
            )

    def name(self, index: int) -> str:
        """The path of an image."""
        return str(self._root / self._index.path(index))

    def digest(self) -> str:
        """A hash of the classes, the images' paths below the split's folder, and their labels."""
        return digest("folder", self.class_names, self._index.paths, self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        path = self.name(index)
        try:
            encoded = read_file(path)
        except OSError as error:
            raise ImageError.of(path, error) from error
        return {"image": decode(encoded, path), "label": int(self._labels[index])}


def _split_folder(path: str, split: str) -> Path:
    if not path:
        raise InputError(
            "no folder of images given; give --config.data.path, the folder that holds train/ and "
            "val/"
        )
    root = local_path(path, "config.data.path")
    if not os.path.isdir(root):
        raise InputError(f"no folder {root} (config.data.path); it has to hold train/ and val/")
    if not os.path.isdir(root / split):
        raise InputError(f"no folder {split}/ in {root}; config.data.path has to hold train/, val/")
    return root / split


def _check_other_split(root: Path, classes: list[str]) -> None:
    for other in (root.parent / split for split in _SPLITS if split != root.name):
        if other.is_dir():
            check_classes_agree({str(root): classes, str(other): class_folders(other)})
