"""Weights and an image that depend on names and shapes only, so that they are not stored.

NumPy guarantees that `RandomState` gives the same numbers in every version.
"""

from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import numpy as np

LOGITS = Path(__file__).parent / "models" / "golden_logits.json"
NUM_CLASSES = 10
_SIZE = 96  # pixels; AlexNet's smallest is 95


def golden_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns a state dict with torch's names: He-uniform kernels, and non-trivial batch norms."""
    return {name: _array(name, shape) for name, shape in shapes.items()}


def golden_image() -> np.ndarray:
    """Returns a random image, float32 `(1, 96, 96, 3)`."""
    return np.random.RandomState(0).uniform(-2, 2, (1, _SIZE, _SIZE, 3)).astype(np.float32)


def _array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    leaf = name.rpartition(".")[2]
    if len(shape) > 1:
        bound = (6 / np.prod(shape[1:])) ** 0.5
        low, high = -bound, bound
    else:
        low, high = {"weight": (0.5, 1.5), "running_var": (0.5, 1.5)}.get(leaf, (-0.3, 0.3))
    return np.random.RandomState(crc32(name.encode())).uniform(low, high, shape).astype(np.float32)
