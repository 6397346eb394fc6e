"""Copied, re-estimated and matched batch statistics: tables and a figure of docs/true_weights.md.

    python benchmarks/match.py --classifier FILE [--results runs/match.json] [--figure FILE.png]
        [--tables docs/measured]

FILE is a MobileNetV2 of 1000 classes with torchvision's names whose batch norms are folded. The
photographs are those of scikit-image and scikit-learn, and the twenty of `packaged.py`. Results in
the file are not measured again.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8
from photos import originals
from true_classes import unfolded
from true_weights import BASES, CROP, REACH, ROOT, Results, augmented, cut, opened, table

from aa_flax import create_model, match_statistics, recalibrate_batch_norm
from aa_flax.data.pixels import normalise
from aa_flax.nn.layers import BatchNorm

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "china", "flower")
STEP, GIVEN = 70, 32  # pixels between crops of a photograph; number of crops for the methods
COUNTS = (1, 4, 16, 160)
BATCH = 40
FILTERS = (2, 3, 4, 5)
SWEPT = 4  # taps of the figure's filter
METHODS = {
    "re-estimated, folded": "re-estimated, batch norms folded",
    "re-estimated": "re-estimated, batch norms restored",
    "matched": "matched, folded or restored",
}
Images = UInt8[np.ndarray, "N H W 3"]
Classes = Callable[[nnx.Module], np.ndarray]  # from a model to its classes


def crops() -> Images:
    """Returns crops of six photographs in a random order."""
    found = originals()
    photos = [np.asarray(found[name]) for name in PHOTOGRAPHS]
    all_crops = [
        photo[i : i + CROP, j : j + CROP]
        for photo in photos
        for i in range(0, photo.shape[0] - CROP + 1, STEP)
        for j in range(0, photo.shape[1] - CROP + 1, STEP)
    ]
    return np.stack(all_crops)[np.random.default_rng(0).permutation(len(all_crops))]


def antialiased(source: nnx.Module, taps: int) -> nnx.Module:
    """Returns the antialiased model with all variables of its source."""
    model = create_model(f"mobilenet_v2_lpf{taps}")
    nnx.update(model, nnx.state(source))
    return model


def classes_of(model: nnx.Module, images: Images) -> Classes:
    """Returns a function from models like this one to the classes of images."""
    model.eval()
    graph, _ = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(normalise(x)).argmax(-1))
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return lambda model: np.concatenate([run(nnx.state(model), part) for part in parts])


def re_estimated(model: nnx.Module, source: nnx.Module, images: Array) -> nnx.Module:
    """Re-estimates statistics even if batch norms are folded, which is otherwise refused."""
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, BatchNorm):  # earlier statistics have no influence
            layer.var.set_value(2 * layer.var[...])
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return recalibrate_batch_norm(model, batches)


def changed(
    method: Callable[..., nnx.Module], source: nnx.Module, taps: int, images: Images
) -> nnx.Module:
    """Returns the antialiased model with statistics by a method on images."""
    return method(antialiased(source, taps), source, jax.jit(normalise)(images))


def measure_agreement(file: Path, results: Results) -> None:
    """Measures how often antialiased models agree with their folded source, in percent."""
    images = crops()
    source = create_model("mobilenet_v2", pretrained=file)
    wanted = classes_of(source, images)(source)
    for taps in FILTERS:
        classes = classes_of(antialiased(source, taps), images)

        def agreement(model: nnx.Module, classes: Classes = classes) -> float:
            return float(100 * (classes(model) == wanted).mean())

        for name, method in (
            ("copied", lambda model, *_: model),
            ("re-estimated, folded", re_estimated),
            ("matched", match_statistics),
        ):
            model = partial(changed, method, source, taps, images[:GIVEN])
            results.measure(
                "agreement", f"lpf{taps}, {name}", lambda model=model: agreement(model())
            )


def measure_top1(file: Path, results: Results) -> None:
    """Measures top-1 on the twenty photographs, with statistics of few and of many crops."""
    images, labels = opened(None)
    bases = np.random.default_rng(0).integers(0, REACH + 1, (BASES, len(images), 2))
    seen, given = np.concatenate([cut(images, base) for base in bases]), augmented(images, seed=1)
    folded, restored = (create_model("mobilenet_v2", pretrained=file) for _ in range(2))
    unfolded(restored, np.concatenate(given[:2]))
    given = np.concatenate(given)
    classes = classes_of(antialiased(folded, SWEPT), seen)

    def top1(model: nnx.Module, classes: Classes = classes) -> float:
        return float(100 * (classes(model) == np.tile(labels, BASES)).mean())

    results.measure("top1", "plain", lambda: top1(restored, classes_of(restored, seen)))
    results.measure("top1", "copied", lambda: top1(antialiased(restored, SWEPT)))
    for count in COUNTS:
        for name, method, source in (
            ("re-estimated, folded", re_estimated, folded),
            ("re-estimated", re_estimated, restored),
            ("matched", match_statistics, restored),
        ):
            model = partial(changed, method, source, SWEPT, given[:count])
            results.measure("top1", f"{name}, {count}", lambda model=model: top1(model()))


def tables(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every table."""
    rows = found["agreement"]
    names = ("copied", "re-estimated, folded", "matched")
    cells = [
        [f"mobilenet_v2_lpf{k}"] + [f"{rows[f'lpf{k}, {n}']:.0f}" for n in names] for k in FILTERS
    ]
    yield "match_agreement.txt", table(["", "copied", "re-estimated", "matched"], cells)
    rows = found["top1"]
    cells = [
        [text, *(f"{rows[f'{name}, {count}']:.1f}" for count in COUNTS)]
        for name, text in METHODS.items()
    ]
    cells += [["copied", *[f"{rows['copied']:.1f}"] * len(COUNTS)]]
    cells += [["plain model", *[f"{rows['plain']:.1f}"] * len(COUNTS)]]
    yield "match_images.txt", table(["statistics, from images", *map(str, COUNTS)], cells)


def draw(path: Path, rows: dict[str, float]) -> None:
    """Plots top-1 over the number of images."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.axhline(rows["plain"], color="black", lw=1, label="plain model")
    axes.axhline(rows["copied"], color="grey", lw=1, ls="--", label="copied")
    for name, text in METHODS.items():
        values = [rows[f"{name}, {count}"] for count in COUNTS]
        axes.plot(COUNTS, values, marker="o", label=text)
    axes.set(xscale="log", xlabel="images", ylabel="top-1, %", ylim=(-3, 100))
    axes.set_xticks(COUNTS, list(map(str, COUNTS)), minor=False)
    axes.minorticks_off()
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "runs/match.json")
    parser.add_argument("--tables", type=Path, default=ROOT / "docs/measured")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    results = Results(args.results)
    measure_top1(args.classifier, results)
    measure_agreement(args.classifier, results)
    for name, text in tables(results.found):
        (args.tables / name).write_text(text + "\n")
    if args.figure:
        draw(args.figure, results.found["top1"])


if __name__ == "__main__":
    main()
