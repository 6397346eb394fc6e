"""Segmentation of scenes of handwritten digits, and the stability of masks as the camera moves.

A feature pyramid on a backbone of this package, trained for a minute or two on two CPU cores. The
scenes are composed here, from the digits that come with scikit-learn: four of them, of several
sizes, on a noisy ground; each pixel of ink is labelled with its digit. Nothing is downloaded.

    python examples/segmentation.py [--variants plain antialiased ...] [--steps 300] [--seeds 1]

It prints a table: the mean intersection over union, how often two crops of a scene agree on their
common pixels, and how well the model commutes with translations.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from PIL import Image
from sklearn.datasets import load_digits

import aa_flax
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.measures.maps import mask_consistency, translation_psnr
from aa_flax.nn.layers import BatchNorm, conv2d

SCENE, CROP = 80, 64  # side in pixels
CLASSES = 11  # the ground, and ten digits
LEVELS = (
    0,
    1,
    2,
)  # of the backbone, down to 1/8 of the resolution, where a digit has 3 or 4 pixels
GROUND_WEIGHT = 0.2  # weight of ground pixels in the loss: they are five times as many
HELD_OUT = 450  # digits, the last of the data set, by other writers
BATCH = 16

Upsample = Callable[[Array], Array]


def nearest(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Repeats each value four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def blurred(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Inserts zeros between the values, and applies a low-pass filter of 4 taps."""
    return aa_flax.blur_upsample(x, filter_size=4, stride=2, gain="constant")


# The backbone, and the upsampling of its maps to the next finer resolution.
VARIANTS: dict[str, tuple[str, Upsample]] = {
    "plain": ("resnet18", nearest),
    "antialiased": ("resnet18_lpf4", nearest),
    "antialiased_blurred": ("resnet18_lpf4", blurred),
}


class FeaturePyramid(nnx.Module):
    """A feature pyramid: coarse maps are upsampled and added to finer ones (Lin et al., CVPR 2017).

    Every convolution but the last is normalised. Without that, the sums grow with each level, the
    first logits are in the tens, and the first training steps kill the units of ReLUs.

    Args:
        backbone: its levels start at half the resolution, and each halves it.
        classes: number of logits per pixel.
        upsample: doubles the resolution of maps.
        width: channels of the pyramid.
    """

    def __init__(
        self,
        backbone: aa_flax.Backbone,
        classes: int,
        upsample: Upsample,
        *,
        width: int = 32,
        rngs: nnx.Rngs,
    ):
        self.backbone, self.upsample = backbone, upsample
        levels = backbone.feature_info
        self.laterals = nnx.List(NormalisedConv(i.channels, width, 1, rngs=rngs) for i in levels)
        self.smooth = nnx.List(NormalisedConv(width, width, 3, rngs=rngs) for _ in levels)
        self.last = conv2d(width, classes, 1, use_bias=True, rngs=rngs)

    def __call__(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N H W classes"]:
        maps = [lateral(x) for lateral, x in zip(self.laterals, self.backbone(images), strict=True)]
        x = maps[-1]
        for level, smooth in zip(reversed(maps), self.smooth, strict=True):
            x = jax.nn.relu(smooth(x if level is maps[-1] else level + self.upsample(x)))
        return self.last(self.upsample(x))


class NormalisedConv(nnx.Module):
    """A convolution with stride 1, and a batch norm."""

    def __init__(self, in_features: int, features: int, kernel_size: int, *, rngs: nnx.Rngs):
        self.conv = conv2d(in_features, features, kernel_size, padding=kernel_size // 2, rngs=rngs)
        self.bn = BatchNorm(features, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W c"]:
        return self.bn(self.conv(x))


class Probabilities(nnx.Module):
    """A model that returns probabilities instead of logits."""

    def __init__(self, model: nnx.Module):
        self.model = model

    def __call__(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N H W classes"]:
        return jax.nn.softmax(self.model(images))  # pyright: ignore[reportCallIssue]


class Scenes:
    """Returns random scenes of digits: images uint8 `(N, 80, 80, 3)`, and a label per pixel.

    Args:
        held_out: use the digits of the test set.
    """

    def __init__(self, *, held_out: bool, seed: int):
        part = slice(-HELD_OUT, None) if held_out else slice(None, -HELD_OUT)
        digits, labels = load_digits(return_X_y=True)
        self.digits = (digits[part].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.labels = labels[part]
        self.rng = np.random.default_rng(seed)

    def draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        scenes = [self._scene() for _ in range(count)]
        grey, labels = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
        return np.repeat(grey[..., None], 3, axis=3), labels

    def _scene(self) -> tuple[np.ndarray, np.ndarray]:
        grey = self.rng.integers(0, 80, (SCENE, SCENE), np.uint8)
        labels = np.zeros((SCENE, SCENE), np.int32)
        cell = SCENE // 2
        for row, column in np.ndindex(2, 2):  # one digit per quarter, so that none hides another
            size = int(self.rng.integers(24, 37))
            index = self.rng.integers(len(self.labels))
            digit = Image.fromarray(self.digits[index]).resize(
                (size, size), Image.Resampling.BICUBIC
            )
            ink = np.asarray(digit)
            top, left = cell * np.array([row, column]) + self.rng.integers(0, cell - size + 1, 2)
            place = (slice(top, top + size), slice(left, left + size))
            labels[place] = np.where(ink > 100, self.labels[index] + 1, 0)
            grey[place] = np.maximum(grey[place], ink)
        return grey, labels


def crop(arrays: np.ndarray, offsets: Int[np.ndarray, "N 2"]) -> np.ndarray:
    """Returns a crop of 64 pixels of each scene, at its own offset."""
    return np.stack(
        [
            a[top : top + CROP, left : left + CROP]
            for a, (top, left) in zip(arrays, offsets, strict=True)
        ]
    )


def batches(seed: int, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    scenes, rng = Scenes(held_out=False, seed=seed), np.random.default_rng(seed)
    for _ in range(steps):
        images, labels = scenes.draw(BATCH)
        offsets = rng.integers(0, SCENE - CROP + 1, (BATCH, 2))
        yield crop(images, offsets), crop(labels, offsets)


def train(name: str, upsample: Upsample, *, steps: int, seed: int) -> FeaturePyramid:
    """Trains a pyramid on a backbone of this name with AdamW."""
    rngs = nnx.Rngs(seed)
    backbone = aa_flax.create_model(name, features_only=True, out_indices=LEVELS, rngs=rngs)
    model = FeaturePyramid(backbone, CLASSES, upsample, rngs=rngs)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, max(1, steps // 10), steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-2)

    def loss(params, rest, images, labels):
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits = model(normalise(images))
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        weights = jnp.where(labels == 0, GROUND_WEIGHT, 1)
        return (weights * errors).sum() / weights.sum(), nnx.split(model, nnx.Param, ...)[2]

    @jax.jit
    def step(params, rest, moments, images, labels):
        gradients, rest = jax.grad(loss, has_aux=True)(params, rest, images, labels)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), rest, moments

    moments = optimizer.init(params)
    for images, labels in batches(seed, steps):
        params, rest, moments = step(params, rest, moments, images, labels)
    nnx.update(model, params, rest)
    model.eval()
    return model


def evaluate(model: FeaturePyramid, *, count: int) -> dict[str, float]:
    """Evaluates a model on new scenes of held-out digits.

    Returns:
        Mean intersection over union of centre crops, in percent; consistency (mean over classes)
        and agreement (over pixels) of the masks of two crops up to 16 pixels apart, and consistency
        of those at most one pixel apart, in percent; and the PSNR of translation equivariance of
        the probabilities, in decibels.
    """
    images, labels = Scenes(held_out=True, seed=10_000).draw(count)
    masks, near = (
        mask_consistency(model, images, crop_size=CROP, shift_range=reach, passes=2)
        for reach in (SCENE - CROP + 1, 2)
    )
    psnr = translation_psnr(Probabilities(model), images, crop_size=CROP, dynamic_range=1, passes=2)
    return {
        "mean IoU": mean_iou(model, images, labels),
        "consistency": masks["consistency"],
        "agreement": masks["agreement"],
        "consistency, 1 pixel": near["consistency"],
        "EQ-T": psnr["psnr"],
    }


def mean_iou(model: FeaturePyramid, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over classes for centre crops, in percent."""
    graphdef, state = nnx.split(model)
    masks = jax.jit(lambda s, x: nnx.merge(graphdef, s, copy=True)(normalise(x)).argmax(-1))
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        middle = np.full((len(images[part]), 2), (SCENE - CROP) // 2)
        found = np.asarray(masks(state, crop(images[part], middle)))
        np.add.at(confusion, (crop(labels[part], middle), found), 1)
    hits = np.diag(confusion)
    unions = confusion.sum(0) + confusion.sum(1) - hits
    return 100 * float(np.mean(hits / np.maximum(unions, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each variant")
    parser.add_argument("--scenes", type=int, default=256, help="to evaluate on")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in arguments.variants}
    for seed in range(arguments.seeds):
        for variant in arguments.variants:
            start = time.perf_counter()
            model = train(*VARIANTS[variant], steps=arguments.steps, seed=seed)
            found = evaluate(model, count=arguments.scenes)
            runs[variant].append(found | {"seconds": time.perf_counter() - start})
            numbers = ", ".join(f"{name} {x:.1f}" for name, x in runs[variant][-1].items())
            print(f"{variant}, seed {seed}: {numbers}", file=sys.stderr, flush=True)
    print(table(runs))


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Returns mean and standard deviation over the seeds, as Markdown."""
    names = list(next(iter(runs.values()))[0])
    lines = [f"| variant | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for variant, found in runs.items():
        values = np.array([list(run.values()) for run in found])
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(values.mean(0), values.std(0), strict=True)]
        lines.append(f"| `{variant}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
