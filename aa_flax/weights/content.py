"""What a weights file holds, whatever kind it is: told apart by content, read and hashed once."""

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from aa_flax.errors import InputError
from aa_flax.files import local_path, parse_json
from aa_flax.models.model_config import IMAGE_FIELDS, ModelConfig
from aa_flax.weights.mistaken import what_it_is
from aa_flax.weights.state_dicts import as_float32, find_state_dict
from aa_flax.weights.torch_files import parse_torch_file

# What stands for weights without being a file; `aa_flax.weights.locate` says what they mean.
WORDS = ("pretrained", "finetuned", "scratch", "baseline")
EMA = "#ema"  # behind a file's name: its averaged weights


class Content(NamedTuple):
    """What a file, or a mapping in memory, holds.

    Attributes:
        label: what to call it in messages.
        arrays: by the names that stand there; floats are float32.
        ours: whether the names are this package's (`layer1.0.conv1.kernel`), or torch's.
        metadata: facts by name, of safetensors; `model`, `options`, `num_classes` of ours.
        checkpoint: all that a torch file holds.
        sha256: of the file, in hexadecimal.
        averaged: which averaged weights stand beside these, not taken.
    """

    label: str
    arrays: dict[str, np.ndarray]
    ours: bool = False
    metadata: Mapping[str, str] = {}
    checkpoint: Any = None
    sha256: str = ""
    averaged: str = ""

    @property
    def options(self) -> dict[str, Any] | None:
        """Options of the net these weights are of; None: it is not said."""
        return mapping_in(self.metadata, "options", self.label) if self.ours else None


def weights_path(source: str | Path) -> tuple[Path, bool]:
    """The file that is meant, and whether its averaged weights are: `FILE#ema` asks for those.

    Raises:
        InputError: an address, no such file (the message has the nearest of `WORDS`), or a folder.
    """
    path = local_path(source, "weights file")
    ema = path.name.endswith(EMA) and not path.exists()
    if ema:
        path = path.with_name(path.name.removesuffix(EMA))
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a weights file")
    if not path.is_file():
        nearest = get_close_matches(str(source), WORDS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise InputError(f"no file {path}{hint}")
    return path, ema


def read_content(source: str | Path) -> Content:
    """Reads a weights file: safetensors, of this package or with torch's names, or a torch file.

    Args:
        source: the file, of any suffix; `FILE#ema` takes the averaged weights in it.

    Raises:
        InputError: no such file, a damaged one, one that carries code, or no weights in it.
    """
    path, ema = weights_path(source)
    data, digest = _hashed(path, *_version(path))
    _hashed.cache_clear()  # large, and not needed again
    if said := what_it_is(data, path):
        raise InputError(f"{path} is {said}")
    if not _is_safetensors(data[:9], path):
        checkpoint = parse_torch_file(data, path)
        content = content_of(checkpoint, path, ema=ema, most=len(data))
        return content._replace(checkpoint=checkpoint, sha256=digest, label=str(source))
    arrays, metadata = parse_safetensors(data, path)
    if not _is_ours(arrays, metadata):
        content = content_of(arrays, path, ema=ema)
        return content._replace(metadata=metadata, sha256=digest, label=str(source))
    if ema:
        raise InputError(f"{path} holds no EMA weights; it is a file of this package")
    return Content(str(path), as_float32(arrays, path), True, metadata, None, digest)


def content_of(
    checkpoint: Any, label: object, *, ema: bool = False, most: int | None = None
) -> Content:
    """The state dict in what a torch file holds, or a mapping in memory; see `find_state_dict`.

    Args:
        most: the bytes of the file, which are as many as its tensors may have; None: no file.
    """
    tensors, averaged = find_state_dict(checkpoint, label, ema=ema)
    if most is not None:
        _check_size(tensors, most, label)
    if averaged:
        way = f"give {label}{EMA}" if isinstance(label, Path) else "give that entry alone"
        warnings.warn(
            f"{label} also holds averaged weights ({averaged}); the plain ones are taken. For the "
            f"others {way}",
            stacklevel=2,
        )
    return Content(str(label), as_float32(tensors, label), averaged=averaged)


def _check_size(tensors: Mapping[str, Any], most: int, label: object) -> None:
    """Refuses tensors that are larger than their file, before anything of their size is made."""
    size = sum(prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    if size > most:
        raise InputError(
            f"{label} holds tensors of {size:,} bytes in {most:,}: some are expanded or share "
            "memory; save a clone() of each"
        )


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal. A reading of the file that follows needs no second one."""
    return _hashed(path, *_version(path))[1]


@lru_cache(maxsize=1)  # of one file: between its description and its loading
def _hashed(path: Path, modified: int, size: int) -> tuple[bytes, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return data, hashlib.sha256(data).hexdigest()


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by its first bytes."""
    try:
        with path.open("rb") as file:
            return _is_safetensors(file.read(9), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _is_safetensors(start: bytes, path: Path) -> bool:
    """A header begins with its length and a brace; only what begins as nothing is told by name."""
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):  # zip, or a pickle
        return False
    return start[8:9] == b"{" or path.suffix == ".safetensors"


def parse_safetensors(data: bytes, path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays in the bytes of a safetensors file by name, and its metadata.

    Raises:
        InputError: not a whole safetensors file.
    """
    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise not_whole(path, error) from error
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: _array(name, t, path) for name, t in tensors}, header.get("__metadata__") or {}


_DTYPES = {
    "BOOL": np.bool_,
    **{f"{kind}{n}": f"{kind.lower()}{n // 8}" for kind in "IU" for n in (8, 16, 32, 64)},
    **{f"F{n}": f"f{n // 8}" for n in (16, 32, 64)},
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def _array(name: str, tensor: Mapping[str, Any], path: Path) -> np.ndarray:
    if tensor["dtype"] not in _DTYPES:
        raise InputError(f"{path}: {name} is of type {tensor['dtype']}; weights are real numbers")
    return np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def not_whole(path: Path, error: Exception) -> InputError:
    """The error of a safetensors file that cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        if said := what_it_is(file.read(4096), path):
            return InputError(f"{path} is {said}")
    return InputError(f"{path} is not a whole safetensors file ({error}); copy or convert it again")


def _is_ours(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> bool:
    """By what it says, or, where that was lost, by names that torch never gives."""
    return metadata.get("format") == "aa_flax" or any(n.endswith(".kernel") for n in arrays)


def images_in(metadata: Mapping[str, str], label: object) -> dict[str, Any]:
    """What metadata tell of the images a net takes, as fields of `ModelConfig`; none: nothing.

    Raises:
        InputError: they are no such fields.
    """
    fields = mapping_in(metadata, "images", label)
    with naming(f"{label}: images"):
        return checked_images({k: v for k, v in fields.items() if k in IMAGE_FIELDS})


def checked_images(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ModelConfig`, once they make sense."""
    config = ModelConfig(**fields)
    return {name: getattr(config, name) for name in fields}


def mapping_in(metadata: Mapping[str, str], key: str, label: object) -> dict[str, Any]:
    """A mapping that metadata hold as JSON; empty where they do not.

    Raises:
        InputError: it is something else.
    """
    told = metadata.get(key, "{}")
    try:
        found = parse_json(told)
    except ValueError as error:
        raise InputError(f"{label}: {key}: not JSON ({error}): {told:.99}") from error
    if not isinstance(found, dict):
        raise InputError(f"{label}: {key}: must be a mapping, got {told:.99}")
    return found


def count_in(metadata: Mapping[str, str], key: str) -> int | None:
    """A number that metadata hold as text; None: they do not."""
    told = metadata.get(key, "")
    return int(told) if re.fullmatch("[0-9]{1,9}", told) else None


@contextmanager
def naming(label: object) -> Iterator[None]:
    """Adds to an InputError what it is of."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
