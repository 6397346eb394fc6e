"""The list of a folder's images: in torchvision's order, made in parallel, and kept in a cache."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aa_flax.data.index_cache import dates_tell, pack, read_arrays, unpack, write_arrays
from aa_flax.errors import InputError
from aa_flax.runtime import progress_bar

# What torchvision takes for an image: the end of the name, in any case.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_CACHE = "index_2"  # the number is that of the format
_THREADS = 16  # they wait for the file system most of the time

# A folder below the root: its relative path, when it last changed (ns), names of its images.
Listing = tuple[str, int, list[str]]


class Index(NamedTuple):
    """The images below a folder of class folders.

    Attributes:
        classes: names of the class folders, sorted.
        class_of: int32 `(n,)`, each image's place in `classes`.
        paths: uint8, all paths relative to the folder, each ended by a zero byte.
        ends: int64 `(n,)`, where each path ends in `paths`.
        folders, modified: every folder that holds them, and when it last changed, in ns.
    """

    classes: list[str]
    class_of: np.ndarray
    paths: np.ndarray
    ends: np.ndarray
    folders: list[str]
    modified: np.ndarray

    def path(self, i: int) -> str:
        """The i-th image's path, relative to the folder."""
        start = self.ends[i - 1] + 1 if i else 0
        return os.fsdecode(self.paths[start : self.ends[i]].tobytes())


def load_index(root: Path) -> Index:
    """The index of a folder: from the cache if no folder has changed since, else made anew.

    Raises:
        InputError: a folder that cannot be listed, or without class folders.
    """
    key = os.fsencode(root.resolve())
    index = _valid_index(read_arrays(_CACHE, key), root)
    if index is None:
        index = scan(root)
        if dates_tell(index.modified):
            packed = {"classes": pack(index.classes), "folders": pack(index.folders)}
            write_arrays(_CACHE, key, {**index._asdict(), **packed})
    return index


def class_folders(root: Path) -> list[str]:
    """Names of the class folders, sorted as torchvision sorts them.

    Raises:
        InputError: none, or no permission.
    """
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
    """Lists every class folder, many at a time, showing progress."""
    modified = os.stat(root).st_mtime_ns  # before it is listed: a change meanwhile shows later
    classes = class_folders(root)
    bar = progress_bar(len(classes), f"indexing {root}", unit="folder")
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        found: list[list[Listing]] = []
        for listing in pool.map(lambda name: _walk(root, name), classes):
            found.append(listing)
            bar.update()
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
    """A class folder and all below it, sorted.

    Links are followed, as torchvision does; but where one leads back to a folder that it stands in,
    each folder counts once, however many ways lead to it.
    """
    try:
        return _walk_from(root / name, root, once=False) or _walk_from(root / name, root, once=True)
    except OSError as error:
        raise _cannot_list(error) from error


def _walk_from(top: Path, root: Path, *, once: bool) -> list[Listing]:
    """See `_walk`; without `once` nothing where a link leads back."""

    def stop(error: OSError):
        raise error

    # Of each folder that is still to be listed: its date before that, and those it stands in.
    ahead = {os.fspath(top): (os.stat(top), {_identity(os.stat(root))})}
    listings = []
    for folder, inner, files in os.walk(top, onerror=stop, followlinks=True):
        status, seen = ahead.pop(folder)
        if status.st_ino and _identity(status) in seen:  # some file systems number none
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


def _valid_index(kept: dict[str, np.ndarray], root: Path) -> Index | None:
    """What the cache kept; None where that is no index, or a folder has changed since."""
    try:
        names = {name: unpack(kept[name]) for name in ("classes", "folders")}
        index = Index(**{**kept, **names})
        if not _is_whole(index):
            return None
        with ThreadPoolExecutor(_THREADS) as pool:
            now = pool.map(lambda folder: os.stat(root / folder).st_mtime_ns, index.folders)
            return index if np.array_equal(index.modified, list(now)) else None
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _is_whole(index: Index) -> bool:
    """Whether the parts of an index fit each other."""
    paths, ends, class_of = index.paths, index.ends, index.class_of
    types = [(paths, np.uint8), (ends, np.int64), (class_of, np.int32), (index.modified, np.int64)]
    if any(array.ndim != 1 or array.dtype != dtype for array, dtype in types):
        return False
    in_range = not len(ends) or (class_of.min() >= 0 and class_of.max() < len(index.classes))
    return (
        bool(in_range)
        and len(class_of) == len(ends)
        and len(index.modified) == len(index.folders)
        and np.array_equal(np.flatnonzero(paths == 0), ends)
        and (not len(paths) or paths[-1] == 0)
    )
