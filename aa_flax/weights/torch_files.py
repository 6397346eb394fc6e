"""Reading and writing PyTorch's files: tensors and plain values only, never code."""

import argparse
import io
import pathlib
import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.errors import InputError
from aa_flax.files import not_written, replacing


def parse_torch_file(data: bytes, path: str | Path) -> Any:
    """What the bytes of a torch file hold, read with `weights_only=True`: no code in it is run.

    Beside tensors and plain values, what trainers write next to them is read: NumPy's numbers and
    arrays, paths, and the arguments of a command (`argparse.Namespace`).

    Args:
        path: where the bytes come from, for errors.

    Raises:
        InputError: not a torch file or a damaged one, one that carries code or would grow, or no
            torch to read it with.
    """
    torch = import_torch(f"reading {path}")
    try:
        _check_stored(data, path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless(torch)):
            warnings.simplefilter("ignore")  # of torch, about how the file was pickled
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(
            f"{path} cannot be read as torch weights: it is damaged, or holds more than tensors "
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
    """Types whose making runs nothing of a file's, under every name they are pickled by."""
    multiarray = np._core.multiarray  # pyright: ignore[reportAttributeAccessIssue]
    found: list[Any] = [argparse.Namespace, np.ndarray, np.dtype, torch.torch_version.TorchVersion]
    found += [defaultdict, dict, list, int, float]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [(multiarray._reconstruct, f"{module}._reconstruct")]
        found += [(multiarray.scalar, f"{module}.scalar")]
    numbers = "?bBhHiIlLqQefdgU"  # and text; no objects, in which anything may stand
    found += {type(np.dtype(kind)) for kind in numbers}
    found += [(np.dtypes.BytesDType, "numpy.dtypes.BytesDType")]
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
        pure = getattr(pathlib, f"Pure{name.removeprefix('Pure')}")
        found += [(pure, f"{module}.{name}") for module in ("pathlib", "pathlib._local")]
    return found


def _reason(error: Exception) -> str:
    """The cause alone: around it torch advises to load the file code and all."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or repr(error)
    reason = text.splitlines()[0].partition(". Please use")[0]
    if reason.startswith("Weights only load failed"):  # and how to run the code all the same
        code = re.search(r"GLOBAL ([\w.]+)", text)
        return f"it would call {code[1]}" if code else "it would run code"
    if "Unsupported operand" in reason:
        reason += "; torch.save it with its default pickle_protocol"
    if "Unsupported global" in reason:
        reason += "; where it is a whole net, save its state_dict() alone"
    return reason


def write_torch_file(content: Mapping[str, Any], path: Path) -> None:
    """Writes names and arrays, or names and such mappings, as tensors; atomically.

    Raises:
        InputError: no torch, or a path that cannot be written.
    """
    torch = import_torch(f"writing {path}")
    tensors = _to_tensors(content, torch)
    try:
        # Given a path, torch stores its name in the file and hides why writing failed.
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(tensors, file)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise not_written(path, cause) from error


def _to_tensors(content: Any, torch: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _to_tensors(value, torch) for name, value in content.items()}
    return torch.tensor(content)


def import_torch(purpose: str) -> Any:
    """Imports torch, which is an extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{purpose} needs torch; its CPU build is enough: pip install torch --index-url "
            "https://download.pytorch.org/whl/cpu (without --index-url, CUDA's 3 GB come with it)"
        ) from error
    return torch
