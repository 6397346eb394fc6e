"""Differences of our logits from the originals', for every model: the table of docs/fidelity.md.

    python benchmarks/fidelity.py [--models 'resnet*'] [--results runs/fidelity.json]

For each model: the reference (torchvision's for a baseline, `antialiased-cnns` 0.3 for `_lpf<k>`)
with random weights and batch statistics, saved as the original saves its files
({'state_dict': ...}, legacy pickle), read by `create_model(pretrained=...)`, and both run on the
same random images, float32 on CPU. The number is the largest difference of a logit over the largest
logit. All models take over half an hour; models in the results file are not run again.
"""

import argparse
import json
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from reference import compiled, reference_model, relative_difference

from aa_flax import create_model
from aa_flax.models.registry import base_names, has_reference

ROOT = Path(__file__).parents[1]
SIZE = (160, 151)  # one even and one odd side, large enough for every model
ALL_FILTER_SIZES = ("alexnet", "vgg11_bn", "resnet18", "densenet121", "mobilenet_v2")


def names() -> list[str]:
    found = []
    for base in filter(has_reference, base_names()):
        sizes = range(1, 8) if base in ALL_FILTER_SIZES else range(2, 6)
        found += [base, *(f"{base}_lpf{k}" for k in sizes)]
    return found


def measure(name: str) -> float:
    reference = reference_model(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.pth"
        content = {"state_dict": reference.state_dict()}
        torch.save(content, path, _use_new_zipfile_serialization=False)
        model = create_model(name, pretrained=path)
    x = np.random.default_rng(0).standard_normal((2, *SIZE, 3), np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    return relative_difference(compiled(model)(x), expected)


def table(results: dict[str, float]) -> str:
    lines = ["| model | baseline | " + " | ".join(f"lpf{k}" for k in range(1, 8)) + " |"]
    lines.append("|---" * 9 + "|")
    for base in filter(has_reference, base_names()):
        found = [results.get(base), *(results.get(f"{base}_lpf{k}") for k in range(1, 8))]
        cells = ["" if value is None else f"{value:.1e}" for value in found]
        lines.append(f"| {base} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="*", help="a shell pattern of names")
    parser.add_argument("--results", type=Path, default=ROOT / "runs/fidelity.json")
    args = parser.parse_args()
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for name in names():
        if fnmatch(name, args.models) and name not in results:
            results[name] = measure(name)
            args.results.write_text(json.dumps(results, indent=1))
            print(f"{name}: {results[name]:.1e}", file=sys.stderr, flush=True)
    print(table(results))
    print(f"\nlargest of {len(results)}: {max(results.values()):.1e}")


if __name__ == "__main__":
    main()
