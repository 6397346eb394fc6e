"""Reads weights files of any kind, recognized by content: safetensors and PyTorch's, never code."""

import argparse
import hashlib
import io
import pathlib
import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from aa_flax.weights.state_dicts import as_float32, find_state_dict

# Names of published weights; `aa_flax.weights.locate` explains them.
WORDS = ("pretrained", "finetuned", "scratch", "baseline")
EMA = "#ema"  # after a file's name: its averaged weights


class Weights(NamedTuple):
    """Arrays by name, and the model they are weights of."""

    label: str  # their source, for messages
    # By this package's names (`layer1.0.conv1.kernel`), or torch's; floats are float32.
    arrays: Mapping[str, Any]
    torch_names: bool = False  # `layer1.0.conv1.weight`
    model: str = ""  # its name; "": unknown
    options: Mapping[str, Any] | None = None  # of the model; None: unknown
    # Outputs of the last layer, 0 for a model without one; None: unknown, or the layer is lacking.
    num_classes: int | None = None
    head: Sequence[str] = ()  # names of the last layer's arrays
    metadata: Mapping[str, str] = {}  # of a safetensors file
    checkpoint: Any = None  # the whole content of a torch file
    sha256: str = ""  # of the file, in hexadecimal


def weights_path(source: str | Path) -> tuple[Path, bool]:
    """Returns the path of a weights file, and whether `FILE#ema` requests its averaged weights.

    Raises:
        InputError: an address, no such file (the message suggests the nearest of `WORDS`), or a
            directory.
    """
    path = local_path(source, "weights file")
    ema = path.name.endswith(EMA) and not path.exists()
    if ema:
        path = path.with_name(path.name.removesuffix(EMA))
    if path.is_dir():
        raise InputError(f"{path} is a directory, not a weights file")
    if not path.is_file():
        nearest = get_close_matches(str(source), WORDS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise InputError(f"no file {path}{hint}")
    return path, ema


def read_weights(source: str | Path) -> Weights:
    """Reads a weights file: safetensors, of this package or with torch's names, or a torch file.

    It may have any suffix; `FILE#ema` reads its averaged weights.

    Raises:
        InputError: no such file, a damaged one, one that contains code, or no weights in it.
    """
    path, ema = weights_path(source)
    data, digest = _read(path)
    _hashed.cache_clear()  # large, and not needed again
    if kind := _other_kind(data, path):
        raise InputError(f"{path} is {kind}")
    if not _is_safetensors(data[:9], path):
        checkpoint = parse_torch_file(data, path)
        weights = weights_in(checkpoint, path, ema=ema, file_size=len(data))
        return weights._replace(checkpoint=checkpoint, sha256=digest, label=str(source))
    arrays, metadata = _parse_safetensors(data, path)
    if metadata.get("format") != "aa_flax" and not any(n.endswith(".kernel") for n in arrays):
        weights = weights_in(arrays, path, ema=ema)
        return weights._replace(metadata=metadata, sha256=digest, label=str(source))
    if ema:
        raise InputError(f"{path} contains no EMA weights; it is a file of this package")
    return Weights(
        label=str(path),
        arrays=as_float32(arrays, path),
        model=metadata.get("model", ""),
        options=json_in(metadata, "options", path),
        num_classes=integer_in(metadata, "num_classes"),
        metadata=metadata,
        sha256=digest,
    )


def weights_in(
    checkpoint: Any, label: object, *, ema: bool = False, file_size: int | None = None
) -> Weights:
    """Returns the state dict in the content of a torch file or in a mapping; see `find_state_dict`.

    Its tensors may not exceed `file_size` bytes, where that is given.

    Raises:
        InputError: no state dict, several, or tensors larger than the file.
    """
    tensors, averaged = find_state_dict(checkpoint, label, ema=ema)
    if file_size is not None:
        size = sum(prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
        if size > file_size:  # refused before anything of that size is allocated
            raise InputError(
                f"{label} contains tensors of {size:,} bytes in {file_size:,}: some are expanded "
                "or share memory; save a clone() of each"
            )
    if averaged:
        way = f"give {label}{EMA}" if isinstance(label, Path) else "give that entry alone"
        warnings.warn(
            f"{label} also contains averaged weights ({averaged}); the plain ones are used. For "
            f"the others {way}",
            stacklevel=2,
        )
    return Weights(str(label), as_float32(tensors, label), torch_names=True)


def sha256(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal; `read_weights` then need not read it again."""
    return _read(path)[1]


def _read(path: Path) -> tuple[bytes, str]:
    status = path.stat()
    return _hashed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)  # one file: between its description and its loading
def _hashed(path: Path, modified: int, size: int) -> tuple[bytes, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return data, hashlib.sha256(data).hexdigest()


# Files that are given as weights and are something else, by their beginnings.
_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights: fetch them by git lfs pull",
    b"<": "a web page or XML, not weights: download the file itself",
    b"{": "JSON, not weights",
}


def _other_kind(data: bytes, path: Path) -> str:
    """Returns what a file is that is not weights and what to do; "" where it may be weights."""
    if not data:
        return "empty"
    if path.name.endswith(".index.json"):
        return "the index of weights in several files: merge them into one, e.g. by safetensors"
    if data[8:9] == b"{":  # safetensors, whatever the length of its header looks like
        return ""
    for beginning, kind in _BEGINNINGS.items():
        if data[:200].lstrip().startswith(beginning):
            return kind
    if data.startswith(b"PK"):
        return _other_zip(data)
    return "a text, not weights" if data[:200].isascii() and b"\0" not in data[:200] else ""


def _other_zip(data: bytes) -> str:
    # An archive contains its members' names as plain text; torch's begin with `NAME/data.pkl`.
    if b"/code/" in data and b"constants.pkl" in data:
        return "a TorchScript archive, which contains code: save its state_dict() alone"
    if b"data.pkl" in data[:2000] or b"/data/0" in data:
        return ""
    if b".npy" in data[:2000]:
        return "a NumPy archive: load_torch_state_dict takes dict(numpy.load(FILE))"
    return "a zip archive that torch did not write"


# safetensors

_DTYPES = {
    "BOOL": np.bool_,
    **{f"{kind}{n}": f"{kind.lower()}{n // 8}" for kind in "IU" for n in (8, 16, 32, 64)},
    **{f"F{n}": f"f{n // 8}" for n in (16, 32, 64)},
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def read_metadata(source: str | Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file, read without its arrays; {} for a torch file.

    Raises:
        InputError: the file cannot be read, or is neither.
    """
    path, _ = weights_path(source)
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not _is_safetensors(start[:9], path):
        return {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        if kind := _other_kind(start, path):
            raise InputError(f"{path} is {kind}") from error
        raise _incomplete(path, error) from error


def _is_safetensors(start: bytes, path: Path) -> bool:
    """A header begins with its length and a brace; the suffix decides where the start does not."""
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):  # zip, or a pickle
        return False
    return start[8:9] == b"{" or path.suffix == ".safetensors"


def _parse_safetensors(data: bytes, path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise _incomplete(path, error) from error
    arrays = {}
    for name, tensor in tensors:
        kind = tensor["dtype"]
        if kind not in _DTYPES:
            raise InputError(f"{path}: {name} is of type {kind}; weights are real numbers")
        arrays[name] = np.frombuffer(tensor["data"], _DTYPES[kind]).reshape(tensor["shape"])
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return arrays, header.get("__metadata__") or {}


def _incomplete(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is not a whole safetensors file ({error}); copy or convert it again")


# Facts in metadata, which are texts


def images_in(metadata: Mapping[str, str], label: object) -> dict[str, Any]:
    """Returns the metadata's description of a model's images: fields of `ModelConfig`, checked."""
    fields = json_in(metadata, "images", label)
    with prefixed(f"{label}: images"):
        return checked_images({k: v for k, v in fields.items() if k in IMAGE_FIELDS})


def checked_images(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of a `ModelConfig`, checked."""
    config = ModelConfig(**fields)
    return {name: getattr(config, name) for name in fields}


def json_in(metadata: Mapping[str, str], key: str, label: object) -> dict[str, Any]:
    """Returns a mapping that is stored in metadata as JSON; {} where it is absent.

    Raises:
        InputError: it is not JSON, or not a mapping.
    """
    text = metadata.get(key, "{}")
    try:
        found = parse_json(text)
    except ValueError as error:
        raise InputError(f"{label}: {key}: not JSON ({error}): {text:.99}") from error
    if not isinstance(found, dict):
        raise InputError(f"{label}: {key}: must be a mapping, got {text:.99}")
    return found


def integer_in(metadata: Mapping[str, str], key: str) -> int | None:
    """Returns an integer that is stored in metadata as text; None where it is absent."""
    text = metadata.get(key, "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


@contextmanager
def prefixed(label: object) -> Iterator[None]:
    """Puts a label before the message of an InputError that the body raises."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


# PyTorch's files


def parse_torch_file(data: bytes, path: str | Path) -> Any:
    """Returns the content of a torch file, read with `weights_only=True`: no code in it is run.

    Tensors and plain values are read, and what trainers store next to them: NumPy's numbers and
    arrays, paths, and the arguments of a command (`argparse.Namespace`).

    Raises:
        InputError: not a torch file or a damaged one, one that contains code or is compressed, or
            torch is not installed.
    """
    torch = import_torch(f"reading {path}")
    try:
        _check_stored(data, path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless(torch)):
            warnings.simplefilter("ignore")  # torch's, about the way the file was pickled
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(
            f"{path} cannot be read as torch weights: it is damaged, or contains more than tensors "
            f"(nothing in it was run). torch says: {_reason(error)}"
        ) from error


def _check_stored(data: bytes, path: str | Path) -> None:
    """Refuses an archive that takes more memory than it has bytes, before it is unpacked."""
    if not data.startswith(b"PK"):
        return
    members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    size = sum(member.file_size for member in members)
    if size > len(data) or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise InputError(
            f"{path} is compressed ({size:,} bytes in {len(data):,}), which torch's files are not; "
            "if you trust it, write it again: torch.save(torch.load(FILE), FILE)"
        )


def _harmless(torch: Any) -> list[Any]:
    """Returns types whose construction runs no code of a file, by each of their pickled names."""
    multiarray = np._core.multiarray  # pyright: ignore[reportAttributeAccessIssue]
    found: list[Any] = [argparse.Namespace, np.ndarray, np.dtype, torch.torch_version.TorchVersion]
    found += [defaultdict, dict, list, int, float]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [(multiarray._reconstruct, f"{module}._reconstruct")]
        found += [(multiarray.scalar, f"{module}.scalar")]
    # Numbers and text; no objects, which may be anything.
    found += {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdgU"}
    found += [(np.dtypes.BytesDType, "numpy.dtypes.BytesDType")]
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
        pure = getattr(pathlib, f"Pure{name.removeprefix('Pure')}")
        found += [(pure, f"{module}.{name}") for module in ("pathlib", "pathlib._local")]
    return found


def _reason(error: Exception) -> str:
    """Returns the cause alone, without torch's advice to load the file code and all."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or repr(error)
    reason = text.splitlines()[0].partition(". Please use")[0]
    if reason.startswith("Weights only load failed"):  # followed by ways to run the code
        code = re.search(r"GLOBAL ([\w.]+)", text)
        return f"it would call {code[1]}" if code else "it would run code"
    if "Unsupported operand" in reason:
        reason += "; torch.save it with its default pickle_protocol"
    if "Unsupported global" in reason:
        reason += "; where it is a whole model, save its state_dict() alone"
    return reason


def import_torch(purpose: str) -> Any:
    """Imports torch, an extra; an InputError says how to install it.

    Raises:
        InputError: it is not installed; the message explains how to.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{purpose} needs torch; its CPU build is enough: pip install torch --index-url "
            "https://download.pytorch.org/whl/cpu (without --index-url, CUDA's 3 GB come with it)"
        ) from error
    return torch
