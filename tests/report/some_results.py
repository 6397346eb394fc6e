"""Invented results of a few models, with everything that a report can show."""

import json
from pathlib import Path

import numpy as np

from aa_flax.evaluation.equivariance import EquivarianceMaps

MODELS = {
    "resnet18": (70.0, 59.0, 5.0),
    "resnet18_lpf2": (71.0, 83.0, 5.4),
    "resnet18_lpf4": (72.0, 88.0, 5.9),
    "alexnet": (60.0, 78.0, 1.2),
    "alexnet_lpf4": (61.0, 84.0, 2.2),
}
OFFSETS, CROP = 9, 12
SIZE = CROP + OFFSETS - 1


def write_results(folder: Path, *, seeds: int = 2) -> list[Path]:
    """Writes a folder of results for each model and seed."""
    rng = np.random.default_rng(0)
    folders = []
    for name, numbers in MODELS.items():
        for seed in range(seeds):
            folders.append(folder / f"{name}_{seed}")
            folders[-1].mkdir(parents=True)
            _write_arrays(folders[-1], rng, float(numbers[1]))
            results = _results(name, [float(n + seed * rng.uniform(0.2, 1)) for n in numbers])
            (folders[-1] / "results.json").write_text(json.dumps(results))
    return folders


def _results(name: str, numbers: list[float]) -> dict:
    top1, consistency, milliseconds = numbers
    data = {"name": "digits", "crop_size": CROP, "image_size": SIZE, "resize_size": 0}
    return {
        "model": name,
        "weights": {"kind": "file", "file": "somewhere"},
        "num_images": 450,
        "top1": top1,
        "data": data,
        "shift": {"consistency": consistency, "shift_range": OFFSETS},
        "time": {"milliseconds": milliseconds, "batch_size": 48, "device": "cpu"},
        "diagonal": {"file": "d.npz", "images": [0, 2]},
        "equivariance": {"file": "e.npz"},
    }


def _write_arrays(folder: Path, rng: np.random.Generator, consistency: float) -> None:
    probability = rng.uniform(consistency / 100, 1, (3, OFFSETS))
    np.savez(
        folder / "d.npz",
        diag_probs=probability,
        diag_corrs=probability > 0.8,
        image_index=[0, 2],
        image_pixels=rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8),
        image_class=["seven </script>", "two"],
    )
    blocks, strides = ("stem", "layer1", "layer2", "logits"), (2, 4, 8, 8)
    maps = rng.uniform(0, 1, (4, 8, 8)) * (100 - consistency) / 30
    EquivarianceMaps(blocks, strides, maps, np.ones(4)).save(folder / "e.npz")
