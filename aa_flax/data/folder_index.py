"""The list of a folder's images: in torchvision's order, made in parallel, and kept in a cache."""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from aa_flax.disk import cache_folder, replacing
from aa_flax.errors import InputError

# What torchvision takes for an image: the end of the name, in any case.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_VERSION = 1  # of the cache's format
_THREADS = 16  # they wait for the file system most of the time


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
        """Of the i-th image, relative to the folder."""
        start = self.ends[i - 1] + 1 if i else 0
        return os.fsdecode(self.paths[start : self.ends[i]].tobytes())


def load_index(root: Path) -> Index:
    """The index of a folder: from the cache if no folder has changed since, else made anew.

    Raises:
        InputError: a folder that cannot be listed, or without class folders.
    """
    cache = _cache_file(root)
    try:
        return _read_valid(cache, root)
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        # There is none, or it is damaged or out of date.
        index = scan(root)
    # A folder may change again within one tick of its clock: such a date would prove nothing.
    if index.modified.max() < time.time_ns() - 2_000_000_000:
        _write(cache, index)
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
    bar = tqdm(total=len(classes), desc=f"indexing {root}", unit="folder", leave=False)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        found = []
        for listing in pool.map(lambda name: list(_walk(root, name)), classes):
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


def _walk(root: Path, name: str) -> Iterator[tuple[str, int, list[str]]]:
    """A class folder and all below it: relative path, time of change, images, all sorted."""

    def stop(error: OSError):
        raise _cannot_list(error) from error

    for folder, _, files in sorted(os.walk(root / name, onerror=stop, followlinks=True)):
        images = sorted(file for file in files if file.lower().endswith(EXTENSIONS))
        yield os.path.relpath(folder, root), os.stat(folder).st_mtime_ns, images


def _cannot_list(error: OSError) -> InputError:
    return InputError(f"cannot list folder {error.filename}: {error.strerror}")


def _cache_file(root: Path) -> Path:
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_folder() / f"index_{_VERSION}_{key}.npz"


def _read_valid(cache: Path, root: Path) -> Index:
    with cache.open("rb") as file, np.load(file) as arrays:
        index = Index(
            _unpack(arrays["classes"]),
            arrays["class_of"],
            arrays["paths"],
            arrays["ends"],
            _unpack(arrays["folders"]),
            arrays["modified"],
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        now = pool.map(lambda folder: os.stat(root / folder).st_mtime_ns, index.folders)
        if not np.array_equal(index.modified, list(now)):
            raise ValueError("out of date")
    return index


def _write(cache: Path, index: Index) -> None:
    """Writes the cache in one step; where that is not possible there will be none."""
    classes, folders = _pack(index.classes), _pack(index.folders)
    arrays: Any = index._replace(classes=classes, folders=folders)._asdict()
    with suppress(OSError), replacing(cache) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _pack(names: Iterable[str]) -> np.ndarray:
    return np.frombuffer(os.fsencode("\0".join(names)), np.uint8)


def _unpack(packed: np.ndarray) -> list[str]:
    return os.fsdecode(packed.tobytes()).split("\0")
