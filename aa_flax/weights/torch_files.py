"""Reading and writing PyTorch's files: tensors only, never code."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.disk import replacing
from aa_flax.errors import InputError


def read_torch_content(path: str | Path) -> Any:
    """Whatever a torch file holds, read with `weights_only=True`: code in it is refused, not run.

    Raises:
        InputError: no such file, not a torch file or a damaged one, one that carries code, or no
            torch to read it with.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    torch = _torch(f"reading {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(
            f"{path} cannot be read as torch weights: it is damaged, or holds more than tensors "
            f"(nothing in it was run). torch says: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """The cause alone: around it torch advises to load the file code and all."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or repr(error)
    return text.splitlines()[0].partition(". Please use")[0]


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a torch file, bare or in a training checkpoint, by today's names.

    Raises:
        InputError: those of `read_torch_content`, or no state dict in it.
    """
    return state_dict_of(read_torch_content(path), path)


def state_dict_of(content: Any, path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in the content of the torch file at `path`, as arrays."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(hasattr(v, "numpy") for v in content.values()):
        raise InputError(f"{path} holds no state dict (a mapping of names to tensors)")
    return {todays_name(name): _to_numpy(tensor) for name, tensor in content.items()}


def todays_name(name: str) -> str:
    """A tensor's name without DataParallel's `module.`, and as torchvision spells it today.

    Training checkpoints have `module.conv1.weight` or `features.module.0.weight`; old DenseNet
    files `norm.1.weight` for `norm1.weight`.
    """
    name = re.sub(r"(^|\.)module\.", r"\1", name)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def write_torch_file(content: Mapping[str, Any], path: str | Path) -> None:
    """Writes names and arrays, or names and such mappings, as tensors; atomically."""
    torch = _torch(f"writing {path}")
    with replacing(Path(path)) as temporary:
        torch.save(_to_tensors(content, torch), temporary)


def _to_tensors(content: Any, torch: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _to_tensors(value, torch) for name, value in content.items()}
    return torch.tensor(content)


def _to_numpy(tensor: Any) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{purpose} needs torch: pip install 'aa_flax[torch]'") from error
    return torch
