"""Distillation with true ImageNet weights on photographs: the tables of docs/distill.md.

    python benchmarks/distill_true.py [--classifier FILE] [--trunks alexnet,vgg16] [--seeds 3]
        [--results runs/distill_true.json]

The twenty photographs of `packaged.py` are split at random into ten to learn from, without labels,
and ten that are held out; each seed is another split. Antialiased models get the weights of the
plain one: copied, with statistics matched, distilled from there. MobileNetV2, FILE, learns the
plain model's classes; AlexNet and VGG16, of which packages have no last layer, its last map.
Without FILE MobileNetV2 is left out. Results in the file are not measured again.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from distill import cell
from flax import nnx
from jaxtyping import Array, UInt8
from true_parity import our_trunk
from true_weights import (
    ROOT,
    Outputs,
    Pooled,
    Results,
    augmented,
    feature_distance,
    opened,
    outputs_under_shifts,
    table,
)

import aa_flax
from aa_flax.data.pixels import normalise

SHIFTS = (1, 4, 16)
# Of each model: steps, learning rate, side of the crops it learns from and is measured on.
SETTINGS = {
    "mobilenet_v2": (80, 5e-5, 224),
    "alexnet": (100, 1e-4, 128),
    "vgg16": (20, 5e-5, 128),
}
CHANNELS = {"alexnet": 256, "vgg16": 512}  # of the last maps of trunks
TEMPERATURE, ANSWERS = 4.0, 2  # of the classifier; answers over which the target is averaged
ROWS = ("plain model", "copied", "matched", "distilled")
HALVES = ("held out", "learned")
OF_CLASSES = ("agreement", "100 KL", "top-1", "consistency", "change")
OF_MAPS = ("distance", "own, moved by 1", *(f"pooled, moved by {d}" for d in SHIFTS))
Images = UInt8[np.ndarray, "N H W 3"]


def antialiased(plain: nnx.Module, name: str) -> nnx.Module:
    """Returns the antialiased model, or its trunk, with all variables of the plain one."""
    if isinstance(plain, Pooled):
        return Pooled(our_trunk(f"{name}_lpf4"))
    model = nnx.eval_shape(lambda: aa_flax.create_model(f"{name}_lpf4"))
    nnx.update(model, nnx.state(plain))
    return model


def functional(model: nnx.Module) -> tuple[Callable[[Any, Array], Any], nnx.State]:
    """Returns a function from a model's state and images to its outputs, and its state.

    Those of a trunk are a pair: logits of a single class, whose divergence is 0, and its last map.
    """
    model.eval()
    graph, state = nnx.split(model)

    def outputs(state: nnx.State, images: Array) -> Any:
        merged: Any = nnx.merge(graph, state)
        if isinstance(merged, Pooled):
            return jnp.zeros((len(images), 1)), merged.forward_features(images)
        return merged(images)

    return outputs, state


def middle(images: Images, size: int) -> Images:
    start = (images.shape[1] - size) // 2
    return images[:, start : start + size, start : start + size]


def trained(
    plain: nnx.Module, name: str, photographs: Images, seed: int, steps: int = 0
) -> nnx.Module:
    """Returns the antialiased model with statistics matched on crops, or distilled in steps.

    A trunk is distilled from the copied weights, since it has no batch norm to match.
    """
    _, rate, size = SETTINGS[name]
    student, is_trunk = antialiased(plain, name), isinstance(plain, Pooled)
    if not is_trunk:
        (crops,) = augmented(photographs, seed, batches=1)
        aa_flax.match_statistics(student, plain, jax.jit(normalise)(middle(crops, size)))
    if steps:
        (f, params), (g, fixed) = functional(student), functional(plain)
        new = aa_flax.distill(
            f,
            partial(g, fixed),
            params,
            mirrored(photographs, seed, steps),
            optimizer=optax.adam(optax.cosine_decay_schedule(rate, steps)),
            temperature=TEMPERATURE,
            crop_size=size,
            shifts=1 if is_trunk else ANSWERS,
            map_weight=float(is_trunk),
        )
        nnx.update(student, new)
    return student


def mirrored(images: Images, seed: int, steps: int) -> Iterator[Array]:
    """Yields all images at each step, half of them mirrored."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        flip = rng.random((len(images), 1, 1, 1)) < 0.5
        yield jax.jit(normalise)(np.where(flip, images[:, :, ::-1], images))


def predictions(model: nnx.Module, size: int, images: Images) -> Outputs:
    """Returns logits, or last maps as vectors, of crops of every photograph and of their shifts."""
    f, state = functional(model)

    @jax.jit
    def run(state: nnx.State, x: Any) -> Array:
        outputs = f(state, normalise(x))
        return outputs[1].reshape(len(x), -1) if isinstance(outputs, tuple) else outputs

    def predict(x: Images) -> np.ndarray:
        return np.asarray(run(state, middle(x, size)))

    return outputs_under_shifts(predict, images, SHIFTS)


def of_classes(found: Outputs, plain: Outputs, labels: np.ndarray) -> Iterator[np.floating]:
    """Yields `OF_CLASSES`: answers next to the plain model's and to those for shifted crops."""
    logs = {d: np.asarray(jax.nn.log_softmax(x)) for d, x in found.items()}
    wanted = np.asarray(jax.nn.log_softmax(plain[0]))
    classes = {d: x.argmax(-1) for d, x in found.items()}
    yield 100 * (classes[0] == plain[0].argmax(-1)).mean()
    yield 100 * (np.exp(wanted) * (wanted - logs[0])).sum(-1).mean()
    yield 100 * (classes[0] == labels[:, None, None]).mean()
    yield 100 * np.mean([classes[d] == classes[0] for d in SHIFTS])
    yield 50 * np.mean([abs(np.exp(logs[d]) - np.exp(logs[0])).sum(-1) for d in SHIFTS])


def of_maps(found: Outputs, plain: Outputs, channels: int) -> Iterator[np.floating]:
    """Yields `OF_MAPS`: distances of last maps, and of pooled ones, in percent."""
    for x, y in ((found[0], plain[0]), (found[1], found[0])):
        yield 100 * np.square(x - y).mean() / np.square(y).mean()
    pooled = {d: x.reshape(*x.shape[:-1], -1, channels).mean(-2) for d, x in found.items()}
    others = [np.roll(pooled[0], i, 0) for i in range(1, len(pooled[0]))]
    scale = np.mean([feature_distance(pooled[0], other) for other in others])
    for d in SHIFTS:
        yield 100 * feature_distance(pooled[0], pooled[d]).mean() / scale


def measure(name: str, plain: nnx.Module, seeds: int, results: Results) -> str:
    """Measures every row for every seed, on both halves of the photographs; returns the part."""
    images, labels = opened(None)
    steps, _, size = SETTINGS[name]

    @lru_cache
    def untrained(row: str) -> Outputs:
        return predictions(plain if row == ROWS[0] else antialiased(plain, name), size, images)

    def measured(row: str, seed: int) -> dict[str, list[float]]:
        held_out, learned = np.split(np.random.default_rng(seed).permutation(len(images)), 2)
        if row in ROWS[:2]:
            found = untrained(row)
        else:
            model = trained(plain, name, images[learned], seed, steps if row == ROWS[-1] else 0)
            found = predictions(model, size, images)
        rows = {}
        for half, i in zip(HALVES, (held_out, learned), strict=True):
            mine, theirs = ({d: x[i] for d, x in f.items()} for f in (found, untrained(ROWS[0])))
            if name in CHANNELS:
                values = of_maps(mine, theirs, CHANNELS[name])
            else:
                values = of_classes(mine, theirs, labels[i])
            rows[half] = list(map(float, values))
        return rows

    part = f"{name}, {steps} steps"
    for seed in range(seeds):
        for row in rows_for(name):
            results.measure(part, f"{row}, {seed}", partial(measured, row, seed))
    return part


def rows_for(name: str) -> tuple[str, ...]:
    """Returns the rows of a model: trunks have no batch norm to match."""
    return tuple(row for row in ROWS if row != "matched" or name not in CHANNELS)


def rows_of(found: Mapping[str, Any], name: str, seeds: int) -> Iterator[list[str]]:
    """Yields the rows of a model's table: means over seeds and standard deviations."""
    for row in rows_for(name):
        runs = [found[f"{row}, {seed}"] for seed in range(seeds)]
        shown = HALVES if row in ROWS[2:] else HALVES[:1]
        for half in shown:
            title = row if half == HALVES[0] else f"*{row}, {half}*"
            columns = zip(*(run[half] for run in runs), strict=True)
            cells = (cell(list(column)) for column in columns)
            yield [f"{name}: {title}" if name in CHANNELS else title, *cells]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--trunks", default="alexnet,vgg16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=ROOT / "runs/distill_true.json")
    args = parser.parse_args()
    results = Results(args.results)

    def rows(name: str, plain: nnx.Module) -> list[list[str]]:
        part = measure(name, plain, args.seeds, results)
        return list(rows_of(results.found[part], name, args.seeds))

    if args.classifier:
        plain = aa_flax.create_model("mobilenet_v2", pretrained=args.classifier)
        print(table(["mobilenet_v2_lpf4", *OF_CLASSES], rows("mobilenet_v2", plain)) + "\n")
    trunks = [name for name in args.trunks.split(",") if name]
    cells = [row for name in trunks for row in rows(name, Pooled(our_trunk(name)))]
    if cells:
        print(table(["last map", *OF_MAPS], cells))


if __name__ == "__main__":
    main()
