"""The effect of int8 on accuracy, consistency under shifts, size and time.

    python benchmarks/int8.py runs/digits_resnet18 runs/digits_resnet18_lpf4 [--rounds 7]

The arguments are runs on digits. Each is exported twice, calibrated on its training digits, and
evaluated on the held-out ones, at every shift of a crop. Prints a Markdown table, in percent:
accuracy and consistency (how often two random shifts of a digit get the same class) of the files in
float32 and in int8, and how often both give the same class, for centred and for shifted digits; the
sizes of the files, and the ratio of their times: the median over the rounds, the minimum, the
maximum.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from export import alternating_times
from models_table import ratio

import aa_flax
from aa_flax.data.digits import Digits
from aa_flax.export.onnx_file import open_onnx
from aa_flax.weights.locate import OfRun


def digits(split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images `(n, size, size, 3)` and labels."""
    source = Digits(split, size)
    examples = [source[i] for i in range(len(source))]
    return np.stack([np.asarray(e["image"]) for e in examples]), np.array(
        [e["label"] for e in examples]
    )


def shifted(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yields all crops, row by row: `(n, size, size, 3)` each."""
    room = images.shape[1] - size + 1
    for y in range(room):
        for x in range(room):
            yield images[:, y : y + size, x : x + size]


def consistency(classes: np.ndarray) -> float:
    """Returns the probability that two random shifts of an image have the same class.

    Args:
        classes: int `(shifts, n)`.
    """
    same = [(classes == label).mean(0) ** 2 for label in range(classes.max() + 1)]
    return float(np.sum(same, axis=0).mean())


def measure(run: str, args: argparse.Namespace, folder: Path) -> str:
    """Returns a row of the table."""
    weights = OfRun(run)
    data = weights.config["data"]
    model = aa_flax.create_model(weights.name, pretrained=run)
    size, room = data["crop_size"], data["image_size"]
    images, labels = digits("val", room)
    files = {kind: folder / f"{kind}.onnx" for kind in ("float32", "int8")}
    classes = []
    for kind, file in files.items():
        calibration = digits("train", size)[0] if kind == "int8" else None
        aa_flax.export(model, file, size=size, preprocessing=True, int8=calibration)
        logits = open_onnx(file)
        classes.append(np.stack([logits(crops).argmax(-1) for crops in shifted(images, size)]))
    centre = len(classes[0]) // 2
    same = classes[0] == classes[1]
    task = {"model": model.name, "batch": args.batch, "size": size, "variant": "ours"}
    tasks = {kind: {**task, "file": str(file)} for kind, file in files.items()}
    cells = [
        f"`{model.name}`",
        " → ".join(f"{100 * (found[centre] == labels).mean():.1f}" for found in classes),
        " → ".join(f"{100 * (found == labels).mean():.1f}" for found in classes),
        " → ".join(f"{100 * consistency(found):.1f}" for found in classes),
        f"{100 * same[centre].mean():.1f}",
        f"{100 * same.mean():.1f}",
        " → ".join(f"{file.stat().st_size / 2**20:.1f}" for file in files.values()),
        str(ratio(*alternating_times(tasks, args.rounds, args.turn))),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=0.5, help="minimum seconds of each turn")
    args = parser.parse_args()
    print(
        "| model | centred | shifted | consistency | same class, centred | shifted | MiB | "
        "float32 / int8, time |\n|---|---|---|---|---|---|---|---|"
    )
    for run in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(run, args, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
