"""Images in WebDataset's tar files, read at random: the shards, their index, and the source."""

import os
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape, glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aa_flax.data import classes
from aa_flax.data.cache import THREADS, dates_are_reliable, digest, read_arrays, write_arrays
from aa_flax.data.folder import EXTENSIONS, natural_key
from aa_flax.data.pixels import Example, ImageError, decode
from aa_flax.errors import InputError
from aa_flax.files import local_path, parse_json
from aa_flax.runtime import progress_bar

_NAMES = "classes.txt"
_CACHE = "shards_2"  # the number is that of the format
_IMAGES = tuple(extension[1:] for extension in EXTENSIONS)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

# Words in the name of a shard or of its folder. A test set is validation where there is no other.
_TRAIN, _VAL = ("train", "training"), ("val", "valid", "validation")
_WORDS = {**dict.fromkeys(_TRAIN, "train"), **dict.fromkeys(_VAL, "val"), "test": "test"}

# A file in a shard: offset, size, and the bytes of a small one with labels.
Member = tuple[int, int, bytes]


class WebDataset:
    """The samples of tar shards, in order: `KEY.jpg` (or another image) and its class number.

    The number is the text in `KEY.cls`, or `label` in `KEY.json`. Class names are the lines of
    `classes.txt` in the folder that contains the shards or their folders, or of equal files in
    several of these. Without it, classes are numbers, up to the largest in either split.

    Args:
        pattern: see `find_shards`.
        path: the folder it is relative to; "": the current one.
        split: `train` or `val`.
        class_order: see `declared_classes`, or, without class names, `numbered_classes`.

    Raises:
        InputError: there are no shards, or they cannot be read; a label is not a class.
    """

    def __init__(self, pattern: str, path: str, split: str, class_order: str = ""):
        root = local_path(path, "config.data.path")
        pattern = os.fspath(local_path(pattern, "config.data.name"))
        shards = find_shards(pattern, root)
        if not shards[split]:
            raise InputError(
                f"{root / pattern} has no shards for {split}; their names have to contain "
                f"{'train' if split == 'train' else 'val, validation or test'} "
                "(put a pattern with braces in quotes, or the shell expands it)"
            )
        self._shards = [os.fspath(shard) for shard in shards[split]]
        folders = [os.path.abspath(shard.parent) for each in shards.values() for shard in each]
        self._base = os.path.commonpath(folders)
        self._index = load_shard_index(shards[split])
        labels, where = self._index.label, os.fspath(root / pattern)
        names = _class_names(Path(self._base), map(Path, folders))
        if names:
            classes.check_labels(labels, len(names), self.name)
            self.class_names, logits = classes.declared_classes(names, class_order, where)
            labels = logits[labels]
        else:
            indexes = [load_shard_index(each) for each in shards.values() if each]
            largest = max(index.label.max(initial=-1) for index in indexes)
            self.class_names = classes.numbered_classes(int(largest) + 1, class_order, where)
            classes.check_labels(labels, len(self.class_names), self.name)
        self.num_classes = len(self.class_names)
        self._labels = labels.astype(np.int32)

    def name(self, index: int) -> str:
        """Returns the shard and key of an image."""
        key = os.fsdecode(self._index.keys[index])
        return f"{self._shards[self._index.shard_of[index]]}/{key}"

    def digest(self) -> str:
        """Returns a hash of the classes, the shards' names and keys, and the labels."""
        shards = [os.path.relpath(shard, self._base) for shard in self._shards]
        keys = self._index.keys.view(np.uint8)
        return digest("wds", self.class_names, shards, self._index.shard_of, keys, self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        images = self._index
        try:
            with open(self._shards[images.shard_of[index]], "rb") as shard:
                shard.seek(images.offset[index])
                encoded = shard.read(images.size[index])
        except OSError as error:
            raise ImageError.of(self.name(index), error) from error
        return {"image": decode(encoded, self.name(index)), "label": int(self._labels[index])}


def _class_names(base: Path, folders: Iterable[Path]) -> list[str]:
    """Reads the `classes.txt` in these folders and up to `base`; returns [] without one."""
    every = {above for folder in folders for above in (folder, *folder.parents)}
    files = [above / _NAMES for above in sorted(every) if above.is_relative_to(base)]
    found = {str(file): classes.read_classes(file) for file in files if file.is_file()}
    if found:
        classes.check_classes_agree(found, f"leave one {_NAMES}, next to the folders of the shards")
    return next(iter(found.values()), [])


def find_shards(pattern: str, root: Path) -> dict[str, list[Path]]:
    """Returns the shards for `train` and `val`, in order.

    Args:
        pattern: a path with `*`, `?`, `[..]`, alternatives `{a,b}` and ranges `{0000..0146}`, each
            of which must be there; or a folder, for all `*.tar` in it and below. The words train,
            val, validation and test in a shard's name, or else in its folders' below `root`, say
            what it is for.
        root: the folder it is relative to; of an absolute path the last folder counts.
    """
    if os.path.isdir(root / pattern):
        expanded = [f"{escape(pattern)}/**/*.tar"]
    else:
        expanded = dict.fromkeys(expand(pattern))
    paths = dict.fromkeys(path for one in expanded for path in _matching(one, root))
    by_word: dict[str, list[Path]] = {}
    for path in paths:
        by_word.setdefault(_split_of(path, root), []).append(path)
    val = by_word.get("val", by_word.get("test", []))
    return {"train": by_word.get("train", []), "val": val}


def expand(pattern: str) -> Iterator[str]:
    """Expands braces as a shell does: `{a,b}` and `{08..11}`, with as many zeros, also nested."""
    match = re.search(r"\{([^{}]*)\}", pattern)  # an innermost pair
    if not match:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        parts = [f"{i:0{width}}" for i in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        parts = match[1].split(",")
    for part in parts:
        yield from expand(pattern[: match.start()] + part + pattern[match.end() :])


def _matching(pattern: str, root: Path) -> list[Path]:
    """Returns one file, which must exist; or all that match, in natural order."""
    if not re.search(r"[*?\[]", pattern):
        path = root / pattern
        if not os.path.isfile(path):
            raise InputError(f"no shard {path} (config.data.name); give a pattern of those there")
        return [path]
    found = glob(os.path.join(escape(os.fspath(root)), pattern), recursive=True)
    if not found:
        raise InputError(f"no shards {root / pattern} (config.data.name)")
    return [Path(one) for one in sorted(found, key=natural_key)]


def _split_of(path: Path, root: Path) -> str:
    below = path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-2:]
    for part in reversed(below):
        found = {_WORDS[word] for word in re.findall("[a-z]+", part.lower()) if word in _WORDS}
        if len(found) == 1:
            return found.pop()
    raise InputError(
        f"the shard {path} does not say what it is for; its name or a folder's has to contain "
        "train, val, validation or test"
    )


class ShardIndex(NamedTuple):
    """The images of some tar files, in order."""

    shard_of: np.ndarray  # int32 `(n,)`, the file each image is in
    offset: np.ndarray  # int64 `(n,)`, where it begins there
    size: np.ndarray  # int64 `(n,)`, in bytes
    label: np.ndarray  # int64 `(n,)`
    # bytes `(n,)`, the key of each sample in WebDataset's sense: its path, up to the first dot of
    # the name.
    keys: np.ndarray


def load_shard_index(shards: Sequence[Path]) -> ShardIndex:
    """Loads the index of tar files from the cache, or reads the files if one has changed."""
    key = os.fsencode("\0".join(os.fspath(shard.resolve()) for shard in shards))
    status = [os.stat(shard) for shard in shards]
    now = {
        "sizes": np.array([one.st_size for one in status], np.int64),
        "modified": np.array([one.st_mtime_ns for one in status], np.int64),
    }
    stored = read_arrays(_CACHE, key)
    if stored and all(np.array_equal(stored.pop(name), now[name]) for name in now):
        return ShardIndex(**stored)
    index = _scan(shards)
    if dates_are_reliable(now["modified"]):
        write_arrays(_CACHE, key, {**index._asdict(), **now})
    return index


def _scan(shards: Sequence[Path]) -> ShardIndex:
    with ThreadPoolExecutor(THREADS) as pool:
        samples = pool.map(lambda shard: list(_samples(shard)), shards)
        title = f"indexing {shards[0].parent}"
        listings = list(progress_bar(len(shards), title, "shard", iterable=samples))
    rows = [sample for listing in listings for sample in listing]
    numbers = np.array([row[1:] for row in rows], np.int64).reshape(-1, 3)
    counts = [len(listing) for listing in listings]
    return ShardIndex(
        shard_of=np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        offset=numbers[:, 0],
        size=numbers[:, 1],
        label=numbers[:, 2],
        keys=np.array([os.fsencode(row[0]) for row in rows], np.bytes_),
    )


def _samples(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yields key, offset, size and label of each sample of a file."""
    seen: set[str] = set()
    key, parts = "", {}
    for name, member in _members(shard):
        base, _, extension = name.rpartition("/")[2].partition(".")
        here, extension = name[: len(name) - len(extension) - 1], extension.lower()
        if not base or not extension:  # hidden files, and others that are part of no sample
            continue
        if here != key:
            if parts:
                yield _sample(shard, key, parts)
            key, parts = here, {}
            if key in seen:
                raise InputError(f"{shard} contains the sample {key} twice; keep one of them")
            seen.add(key)
        if extension in parts:
            raise InputError(f"{shard} contains {name} twice; keep one of them")
        parts[extension] = member
    if parts:
        yield _sample(shard, key, parts)


def _sample(shard: Path, key: str, parts: dict[str, Member]) -> tuple[str, int, int, int]:
    images = [part for extension, part in parts.items() if extension in _IMAGES]
    extensions = f".{', .'.join(parts)}"
    if len(images) != 1:
        raise InputError(
            f"{shard}: the sample {key} has {len(images)} images ({extensions}); give one, "
            f".{', .'.join(_IMAGES)}"
        )
    offset, size, _ = images[0]
    try:
        label = int(parts["cls"][2]) if "cls" in parts else parse_json(parts["json"][2])["label"]
        if type(label) is not int or abs(label) >= 2**31:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{shard}: the sample {key} ({extensions}) has no label; give it a class "
            'number, in text in .cls or as {"label": 3} in .json'
        ) from error
    return key, offset, size, label


def _members(shard: Path) -> Iterator[tuple[str, Member]]:
    """Yields the regular files of a shard, which may be several concatenated tar files.

    A tar file ends in a block of zeros, or else a part of it is missing.
    """
    try:
        if not shard.is_file():
            raise OSError("it is a pipe, a device or a folder")
        with shard.open("rb") as file:
            _check_uncompressed(shard, file.read(8))
            start: int | None = 0
            while start is not None:
                file.seek(start)
                end = yield from _archive(shard, file)
                file.seek(end)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("its end is missing")
                start = _next_block(file)
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"cannot read the shard {shard}: {error}; it is truncated or not a tar file, replace it"
        ) from error


def _archive(shard: Path, file: Any) -> Generator[tuple[str, Member], None, int]:
    """Yields the regular files of one tar file; returns where it ends."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        tar: Any = archive
        while member := tar.next():
            tar.members.clear()  # which would grow without end
            if member.size < 0:  # after which tarfile would read this one again, without end
                raise tarfile.ReadError(f"{member.name} has a negative size")
            if member.islnk() or member.issym():
                raise InputError(f"{shard} contains a link, {member.name}; store the file")
            if member.issparse():  # its bytes are not those of the file
                raise InputError(
                    f"{shard} has a sparse file, {member.name}; write it with tar without --sparse"
                )
            if member.isreg():
                content = b""
                if member.name.lower().endswith((".cls", ".json")):
                    file.seek(member.offset_data)
                    content = file.read(member.size)
                yield member.name, (member.offset_data, member.size, content)
        return tar.offset


def _next_block(file: Any) -> int | None:
    """Returns the start of the next block that is not zeros; None at the end of the file."""
    while read := file.read(2**20):
        if rest := read.lstrip(b"\0"):
            return (file.tell() - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    return None


def _check_uncompressed(shard: Path, start: bytes) -> None:
    for magic, method in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{shard} is compressed ({method}), so its images cannot be read at random; "
                "unpack it to a plain .tar (images are compressed already)"
            )
