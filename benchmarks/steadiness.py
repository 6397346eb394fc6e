"""`canonical` and `canonical_crop` on photographs, before and after: docs/steadiness.md.

    python -m benchmarks.steadiness --classifier FILE [--folder docs/measured]

FILE is a MobileNetV2 of 1000 classes with torchvision's names, as for `true_weights.py`; the twenty
photographs come from a package (`packaged.py`). The vision transformer is timm's with random
weights, since no package has trained ones: its classes are meaningful only in whether they change.
With `--folder`, the tables are also written there.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax import canonical, canonical_crop, create_model, from_torch
from aa_flax.data.pixels import center_crop, center_image, normalise
from aa_flax.evaluation.intervals import clustered_interval
from aa_flax.ops import circular_padding
from benchmarks import reference  # noqa: F401  (timm imports torchvision)
from benchmarks.packaged import photographs

CROP, MOST = 224, 32  # pixels of the model's input; offsets of a frame are 0..31
FRAMES = (256, 384)  # from which windows are chosen
PAIRS = 4  # per photograph
Model = tuple[Callable[[Any, Any], Any], Any]  # a function of its state and normalised images


def mobilenet(path: Path) -> Model:
    model = create_model("mobilenet_v2", pretrained=path)
    model.eval()
    graph, state = nnx.split(model)
    return lambda state, images: nnx.merge(graph, state)(images), state


def transformer() -> Model:
    """Returns timm's ViT-Tiny with patches of 16 pixels, for images (N, 3, H, W)."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224")
    return from_torch(model, np.zeros((1, 3, CROP, CROP), np.float32))


def centres(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centres of the photographs, resized to that size, and their classes."""
    found = photographs()
    images = [center_image(image, size, size) for image, _ in found]
    return np.stack(images), np.array([label for _, label in found])


def outputs(model: Model, images: np.ndarray, views: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Returns the logits of the images `(N, K)` and of every view of them `(V, N, K)`."""
    f, state = model
    run = jax.jit(lambda state, images: f(state, normalise(images)))
    return np.asarray(run(state, images)), np.stack([run(state, view) for view in views])


def cells(still: np.ndarray, moved: np.ndarray, labels: np.ndarray | None) -> list[str]:
    """Returns top-1 of the images and of the views, and the consistency of pairs of views."""
    classes = moved.argmax(-1)
    agreed = (classes[::2] == classes[1::2]).mean(0)
    low, high = clustered_interval(agreed, PAIRS)
    top1 = ["", ""]
    if labels is not None:
        correct = ((still.argmax(-1) == labels).mean(), (classes == labels).mean())
        top1 = [f"{100 * fraction:.1f}" for fraction in correct]
    return [*top1, f"{100 * agreed.mean():.1f} ({low:.0f} to {high:.0f})"]


def circular(f: Callable[..., Any]) -> Callable[..., Any]:
    """Makes every layer pad circularly: shifts by multiples of the stride then only roll maps."""

    def function(*args: Any) -> Any:
        with circular_padding():
            return f(*args)

    return function


def rolled_table(classifier: Model) -> Iterator[str]:
    """Yields the rows for photographs rolled by random offsets on both axes."""
    images, labels = centres(CROP)
    shifts = np.random.default_rng(0).integers(0, CROP, (2 * PAIRS, 2))
    views = [np.roll(images, shift, (1, 2)) for shift in shifts]

    def row(name: str, model: Model, labels: np.ndarray | None) -> str:
        still, moved = outputs(model, images, views)
        change = np.abs(moved - still).max() / np.abs(still).max()
        return f"| {name} | {' | '.join(cells(still, moved, labels))} | {change:.1e} |"

    yield "| | top-1 | top-1, rolled | consistency | largest change of a logit |"
    yield "|---" * 5 + "|"
    f, state = classifier
    yield row("MobileNetV2", classifier, labels)
    yield row("MobileNetV2, `canonical(f)`", (canonical(f), state), labels)
    yield row("MobileNetV2, circular padding", (circular(f), state), labels)
    steady = canonical(circular(f), 32, phase_only=True)
    yield row(
        "MobileNetV2, circular padding, `canonical(f, 32, phase_only=True)`",
        (steady, state),
        labels,
    )
    f, params = transformer()
    for name, g in (("", f), (", `canonical(f)`", canonical(f, layout="NCHW"))):
        model = (lambda params, x, g=g: g(params, jnp.moveaxis(x, -1, 1))), params
        yield row(f"ViT-Ti/16, random weights{name}", model, None)


def crops_table(classifier: Model) -> Iterator[str]:
    """Yields the rows for windows of frames at random offsets in a photograph."""
    yield "| frame | window | top-1 | top-1, shifted | consistency | same window | radius |"
    yield "|---" * 7 + "|"
    f, state = classifier
    for size in FRAMES:
        images, labels = centres(size + MOST)
        offsets = np.random.default_rng(0).integers(0, MOST, (2 * PAIRS, 2))
        views = [images[:, i : i + size, j : j + size] for i, j in offsets]
        middle = np.asarray(center_crop(jnp.asarray(images), size))
        for name, window in WINDOWS.items():
            model = (lambda state, x, window=window: f(state, window(x))), state
            still, moved = outputs(model, middle, views)
            row = cells(still, moved, labels)
            row += ["", ""] if name == "centre" else certified(views, offsets)
            yield f"| {size} | {name} | {' | '.join(row)} |"


WINDOWS: dict[str, Callable[[Any], jax.Array]] = {
    "centre": lambda frames: center_crop(frames, CROP),
    "`canonical_crop`": lambda frames: canonical_crop(frames, CROP).images,
}


def certified(views: list[np.ndarray], offsets: np.ndarray) -> list[str]:
    """Returns how often a pair has the same window, in percent, and the mean radius.

    Also checks that pairs within the radius have the same window.
    """
    crop = jax.jit(lambda frames: canonical_crop(frames, CROP)[1:])
    at, radius = map(np.stack, zip(*map(crop, views), strict=True))
    at = at + offsets[:, None]
    same = (at[::2] == at[1::2]).all(-1)
    moved = np.abs(offsets[::2] - offsets[1::2]).max(-1)
    assert same[radius[::2] >= moved[:, None]].all()
    return [f"{100 * same.mean():.1f}", f"{radius.mean():.1f}"]


TABLES = {"rolled": rolled_table, "crops": crops_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    args = parser.parse_args()
    classifier = mobilenet(args.classifier)
    for name in args.tables:
        lines = []
        for line in TABLES[name](classifier):
            print(line, flush=True)
            lines.append(line)
        if args.folder:
            (args.folder / f"steadiness_{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
