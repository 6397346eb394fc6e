"""Images in a tree of folders: `<path>/train/<class>/*` and `<path>/val/<class>/*`.

The list of images is in torchvision's order. It is made in parallel and kept in a cache.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aa_flax.data.cache import THREADS, dates_are_reliable, digest, read_arrays, write_arrays
from aa_flax.data.classes import check_classes_agree, classes_in_order, logits_of
from aa_flax.data.pixels import Example, ImageError, decode
from aa_flax.errors import InputError
from aa_flax.files import local_path, read_file
from aa_flax.runtime import progress_bar

# Extensions of images as in torchvision, in any case.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_CACHE = "index_2"  # the number is that of the format

# A folder below the root: its relative path, when it last changed (ns), names of its images.
Listing = tuple[str, int, list[str]]


class ImageFolder:
    """Images in the order of torchvision's `ImageFolder`, and with its pixels.

    Args:
        path: the folder that contains `train/` and `val/`, which must have the same classes unless
            `class_order` is a file or `imagenet`.
        split: `train` or `val`.
        class_order: see `classes_in_order`.

    Raises:
        InputError: a folder is missing, empty or unreadable, or the classes differ between
            `train` and `val` (unless `class_order` is a file or `imagenet`).
    """

    def __init__(self, path: str, split: str, class_order: str = ""):
        self._root = root = _split_folder(path, split)
        self._index = load_index(root)
        found = self._index.classes
        if class_order in ("", "sorted"):
            other = {"train": "val", "val": "train"}.get(split)
            if other and (folder := root.parent / other).is_dir():
                check_classes_agree({str(root): found, str(folder): class_folders(folder)})
            counts = np.bincount(self._index.class_of, minlength=len(found))
            if empty := [found[i] for i in np.flatnonzero(counts == 0)]:
                raise InputError(
                    f"no images in {len(empty)} class folders of {root}: {', '.join(empty[:5])}; "
                    f"fill or remove them (images end in {', '.join(EXTENSIONS)})"
                )
        self.class_names = classes_in_order(class_order, found, str(root))
        self.num_classes = len(self.class_names)
        self._labels = logits_of(found, self.class_names)[self._index.class_of]
        if not len(self):
            raise InputError(f"{root} contains no images ({', '.join(EXTENSIONS)})")

    def name(self, index: int) -> str:
        """Returns the path of an image."""
        return str(self._root / self._index.path(index))

    def digest(self) -> str:
        """Returns a hash of the classes, the relative paths of the images, and their labels."""
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
            "no folder of images given; give --config.data.path, the folder that contains train/ "
            "and val/"
        )
    root = local_path(path, "config.data.path")
    if not os.path.isdir(root):
        raise InputError(f"no folder {root} (config.data.path); it has to contain train/ and val/")
    if not os.path.isdir(root / split):
        raise InputError(
            f"no folder {split}/ in {root}; config.data.path has to contain train/, val/"
        )
    return root / split


class Index(NamedTuple):
    """The images below a folder of class folders."""

    classes: list[str]  # names of the class folders, sorted
    class_of: np.ndarray  # int32 `(n,)`, each image's index in `classes`
    paths: np.ndarray  # uint8, all paths relative to the folder, each terminated by a zero byte
    ends: np.ndarray  # int64 `(n,)`, where each path ends in `paths`
    folders: list[str]  # every folder that was listed
    modified: np.ndarray  # when each of them last changed, in ns

    def path(self, i: int) -> str:
        """Returns the i-th image's path, relative to the folder."""
        start = self.ends[i - 1] + 1 if i else 0
        return os.fsdecode(self.paths[start : self.ends[i]].tobytes())


def load_index(root: Path) -> Index:
    """Loads the index of a folder from the cache, or lists the folder if it has changed."""
    key = os.fsencode(root.resolve())
    index = _current_index(read_arrays(_CACHE, key), root)
    if index is None:
        index = scan(root)
        if dates_are_reliable(index.modified):
            arrays = index._asdict()
            for name in ("classes", "folders"):
                arrays[name] = np.frombuffer(os.fsencode("\0".join(arrays[name])), np.uint8)
            write_arrays(_CACHE, key, arrays)
    return index


def _current_index(stored: dict[str, Any], root: Path) -> Index | None:
    """Returns the index from the cache; None if it is missing or a folder has changed since."""
    try:
        for name in ("classes", "folders"):
            stored[name] = os.fsdecode(stored[name].tobytes()).split("\0")
        index = Index(**stored)
        with ThreadPoolExecutor(THREADS) as pool:
            now = pool.map(lambda folder: os.stat(root / folder).st_mtime_ns, index.folders)
            return index if np.array_equal(index.modified, list(now)) else None
    except (OSError, KeyError):
        return None


def class_folders(root: Path) -> list[str]:
    """Returns the names of the class folders, sorted as torchvision sorts them."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        raise _cannot_list(error) from error
    if not names:
        raise InputError(
            f"{root} has no class folders; images belong in {root}/<class>/ (ImageNet's flat "
            "validation folder is sorted by python -m aa_flax.data.imagenet_val)"
        )
    return names


def scan(root: Path) -> Index:
    """Lists every class folder, many at a time, with a progress bar."""
    modified = os.stat(root).st_mtime_ns  # before listing: a later change gives a later date
    classes = class_folders(root)
    with ThreadPoolExecutor(THREADS) as pool:
        walks = pool.map(partial(_walk, root), classes)
        bar = progress_bar(len(classes), f"indexing {root}", "folder", iterable=walks)
        found: list[list[Listing]] = list(bar)
    listings = [part for one in found for part in one]
    paths = [
        os.fsencode(os.path.join(folder, name)) for folder, _, names in listings for name in names
    ]
    counts = [sum(len(names) for _, _, names in one) for one in found]
    return Index(
        classes=classes,
        class_of=np.repeat(np.arange(len(classes), dtype=np.int32), counts),
        paths=np.frombuffer(b"\0".join([*paths, b""]), np.uint8),
        ends=np.cumsum([len(path) + 1 for path in paths], dtype=np.int64) - 1,
        folders=[".", *(folder for folder, *_ in listings)],
        modified=np.array([modified, *(time for _, time, _ in listings)]),
    )


def _walk(root: Path, name: str) -> list[Listing]:
    """Lists a class folder and all below it, sorted.

    Links are followed, as torchvision does. But where a link leads back to a folder that contains
    it, each folder counts once, however many links lead to it.
    """
    try:
        return _walk_from(root / name, root, once=False) or _walk_from(root / name, root, once=True)
    except OSError as error:
        raise _cannot_list(error) from error


def _walk_from(top: Path, root: Path, *, once: bool) -> list[Listing]:
    """Lists folders as in `_walk`; without `once`, returns nothing if a link leads back."""

    def stop(error: OSError):
        raise error

    # For each folder still to be listed: its status before that, and the folders that contain it.
    ahead = {os.fspath(top): (os.stat(top), {_identity(os.stat(root))})}
    listings = []
    for folder, inner, files in os.walk(top, onerror=stop, followlinks=True):
        status, seen = ahead.pop(folder)
        if status.st_ino and _identity(status) in seen:  # some file systems have no numbers
            if not once:
                return []
            inner.clear()
            continue
        inner.sort()
        seen = seen if once else seen.copy()
        seen.add(_identity(status))
        for path in (os.path.join(folder, one) for one in inner):
            ahead[path] = os.stat(path), seen
        images = sorted(file for file in files if file.lower().endswith(EXTENSIONS))
        listings.append((os.path.relpath(folder, root), status.st_mtime_ns, images))
    return sorted(listings)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _cannot_list(error: OSError) -> InputError:
    return InputError(f"cannot list folder {error.filename}: {error.strerror}")


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Returns a key for `sorted` by which `frame2` is before `frame10`.

    Names that differ in leading zeros alone are in the order of their characters.
    """
    parts = re.split("([0-9]+)", text)  # text and digits alternate, beginning with text
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text
