"""Where each image of WebDataset's tar files lies: listed in parallel, and kept in a cache."""

import os
import tarfile
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aa_flax.data.folder_index import EXTENSIONS
from aa_flax.data.index_cache import dates_tell, read_arrays, write_arrays
from aa_flax.errors import InputError
from aa_flax.files import parse_json
from aa_flax.runtime import progress_bar

_CACHE = "shards_2"  # the number is that of the format
_THREADS = 16
_AT_ONCE = 2**20  # bytes
_IMAGES = tuple(extension[1:] for extension in EXTENSIONS)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

# A file in a tar file: name, offset, size, and of small ones with labels the bytes.
Member = tuple[str, tuple[int, int, bytes]]


class ShardIndex(NamedTuple):
    """The images of some tar files, in order.

    Attributes:
        shard_of: int32 `(n,)`, the file each image is in.
        offset, size: int64 `(n,)`, its bytes there.
        label: int64 `(n,)`.
        keys: bytes `(n,)`, what WebDataset calls each sample: its path, up to the first dot of the
            name.
    """

    shard_of: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    keys: np.ndarray


def load_shard_index(shards: Sequence[Path]) -> ShardIndex:
    """The index of tar files: from the cache if none has changed since, else made anew.

    Raises:
        InputError: a file that is compressed, truncated or no tar file, or contains a sparse file;
            or a sample without one image and one label, or with a key that another of its file has.
    """
    key = os.fsencode("\0".join(os.fspath(shard.resolve()) for shard in shards))
    status = [os.stat(shard) for shard in shards]
    sizes = np.array([one.st_size for one in status], np.int64)
    modified = np.array([one.st_mtime_ns for one in status], np.int64)
    index = _kept(read_arrays(_CACHE, key), sizes, modified)
    if index is None:
        index = _scan(shards)
        if dates_tell(modified):
            write_arrays(_CACHE, key, {**index._asdict(), "sizes": sizes, "modified": modified})
    return index


def _kept(
    arrays: dict[str, np.ndarray], sizes: np.ndarray, modified: np.ndarray
) -> ShardIndex | None:
    """What the cache kept; None where that is no index, or a file has changed since."""
    try:
        if not np.array_equal(arrays.pop("sizes"), sizes):
            return None
        if not np.array_equal(arrays.pop("modified"), modified):
            return None
        index = ShardIndex(**arrays)
        if {array.shape for array in index} != {(len(index.keys),)}:
            return None
        if "".join(array.dtype.kind for array in index) != "iiiiS":
            return None
        inside = (index.offset >= 0) & (index.offset + index.size <= sizes[index.shard_of])
        return index if inside.all() else None
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _scan(shards: Sequence[Path]) -> ShardIndex:
    bar = progress_bar(len(shards), f"indexing {shards[0].parent}", unit="shard")
    listings = []
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        for listing in pool.map(lambda shard: list(_samples(shard)), shards):
            listings.append(listing)
            bar.update()
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
    """Key, offset, size and label of each sample of a file."""
    seen: set[str] = set()
    key, parts = "", {}
    for name, member in _members(shard):
        base, _, extension = name.rpartition("/")[2].partition(".")
        here, extension = name[: len(name) - len(extension) - 1], extension.lower()
        if not base or not extension:  # hidden files, and what belongs to no sample
            continue
        if here != key:
            yield from _sample(shard, key, parts)
            key, parts = here, {}
            if key in seen:
                raise InputError(f"{shard} holds the sample {key} twice; keep one of them")
            seen.add(key)
        if extension in parts:
            raise InputError(f"{shard} holds {name} twice; keep one of them")
        parts[extension] = member
    yield from _sample(shard, key, parts)


def _sample(
    shard: Path, key: str, parts: dict[str, tuple[int, int, bytes]]
) -> Iterator[tuple[str, int, int, int]]:
    if not parts:
        return
    images = [part for extension, part in parts.items() if extension in _IMAGES]
    if len(images) != 1:
        raise InputError(
            f"{shard}: the sample {key} has {len(images)} images (.{', .'.join(parts)}); give one, "
            f".{', .'.join(_IMAGES)}"
        )
    offset, size, _ = images[0]
    yield key, offset, size, _label(shard, key, parts)


def _label(shard: Path, key: str, parts: dict[str, tuple[int, int, bytes]]) -> int:
    try:
        if "cls" in parts:
            return _class_number(int(parts["cls"][2]))
        return _class_number(parse_json(parts["json"][2])["label"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{shard}: the sample {key} (.{', .'.join(parts)}) has no label; give it a class "
            'number, in text in .cls or as {"label": 3} in .json'
        ) from error


def _class_number(value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**31:
        raise ValueError
    return value


def _members(shard: Path) -> Iterator[Member]:
    """The regular files of a shard, which may be several tar files, one after the other.

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
            f"cannot read the shard {shard}: {error}; it is truncated or no tar file, replace it"
        ) from error


def _archive(shard: Path, file: Any) -> Generator[Member, None, int]:
    """Yields the regular files of one tar file; returns where it ends."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        tar: Any = archive
        while member := tar.next():
            tar.members.clear()  # which it would keep
            if member.size < 0:  # after which it would read this one again, without end
                raise tarfile.ReadError(f"{member.name} has a negative size")
            if member.islnk() or member.issym():
                raise InputError(f"{shard} holds a link, {member.name}; store the file")
            if member.issparse():  # its bytes are not those of the file
                raise InputError(
                    f"{shard} has a sparse file, {member.name}; write it with tar without --sparse"
                )
            if member.isreg():
                content = b""
                if member.name.lower().endswith((".cls", ".json")):
                    content = _read(file, member)
                yield member.name, (member.offset_data, member.size, content)
        return tar.offset


def _next_block(file: Any) -> int | None:
    """Returns where the next block begins that is not of zeros; None: there is none."""
    while read := file.read(_AT_ONCE):
        if rest := read.lstrip(b"\0"):
            return (file.tell() - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    return None


def _read(file: Any, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def _check_uncompressed(shard: Path, start: bytes) -> None:
    for magic, method in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{shard} is compressed ({method}), so its images cannot be read at random; "
                "unpack it to a plain .tar (images are compressed already)"
            )
