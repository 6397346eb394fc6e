"""What evaluations leave: one JSON file of results a net, arrays and figures beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.disk import replacing

Results = dict[str, Any]


def beside(output: Path, name: str) -> Path:
    """`runs/a/results_diagonal.npz` for `runs/a/results.json` and `diagonal.npz`."""
    return output.with_name(f"{output.stem}_{name}")


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_results(output: Path) -> Results:
    """What a results file holds; nothing, if there is none."""
    return json.loads(output.read_text()) if output.is_file() else {}


def same_subject(results: Results, others: Results) -> bool:
    """Whether both are of one net, its weights and the config."""
    return all(results.get(key) == others[key] for key in ("model", "weights", "config"))


def write_results(output: Path, results: Results) -> None:
    """Adds to a file of the same net, weights and config, or replaces it; never half a file."""
    before = read_results(output)
    if same_subject(before, results):
        results = before | results
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
