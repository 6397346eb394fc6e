"""Segmentation of scenes of handwritten digits: how steady are the masks when the camera moves?

A feature pyramid on a backbone of this package, trained for a minute or two on two CPU cores. The
scenes are composed here, from the digits that come with scikit-learn: several of them, of several
sizes, on a noisy ground; each pixel of ink is labelled with its digit. Nothing is downloaded.

    python examples/segmentation.py [--variants plain antialiased ...] [--steps 300] [--seeds 1]

It prints a table: the mean intersection over union, and how often two crops of one scene, up to 16
pixels apart, label the pixels that both see alike.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from PIL import Image
from sklearn.datasets import load_digits

import aa_flax
from aa_flax.data.transforms import normalise
from aa_flax.layers import conv2d

SCENE, CROP = 80, 64  # pixels of a side
CLASSES = 11  # the ground, and ten digits
HELD_OUT = 450  # digits, the last of the data set: their writers are not among the others
BATCH = 16

Upsample = Callable[[Array], Array]


def nearest(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Each value four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def blurred(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Zeros between the values, then a low-pass filter of 4 taps."""
    return aa_flax.blur_upsample(x, filter_size=4, stride=2, gain="constant")


# The backbone, and how its maps are brought to the resolution of the next finer ones.
VARIANTS: dict[str, tuple[str, Upsample]] = {
    "plain": ("resnet18", nearest),
    "antialiased": ("resnet18_lpf4", nearest),
    "antialiased_blurred": ("resnet18_lpf4", blurred),
}


class FeaturePyramid(nnx.Module):
    """Coarse maps are upsampled and added to finer ones (Lin et al., CVPR 2017).

    Args:
        backbone: its levels begin at half the resolution and halve it each time.
        classes: logits of each pixel.
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
        conv = partial(conv2d, use_bias=True, rngs=rngs)
        self.laterals = nnx.List(conv(i.channels, width, 1) for i in backbone.feature_info)
        self.smooth = nnx.List(conv(width, width, 3, padding=1) for _ in backbone.feature_info)
        self.last = conv(width, classes, 1)

    def __call__(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N H W classes"]:
        maps = [lateral(x) for lateral, x in zip(self.laterals, self.backbone(images), strict=True)]
        x = jnp.zeros_like(maps[-1])
        for level, smooth in zip(reversed(maps), self.smooth, strict=True):
            x = level + (x if level is maps[-1] else self.upsample(x))
            x = jax.nn.relu(smooth(x))
        return self.last(self.upsample(x))


class Scenes:
    """Random scenes of digits: images uint8 `(N, 80, 80, 3)`, and a label of each pixel.

    Args:
        held_out: compose them of the digits that are kept for the test.
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
        for _ in range(self.rng.integers(4, 8)):
            size = int(self.rng.integers(18, 31))
            index = self.rng.integers(len(self.labels))
            digit = Image.fromarray(self.digits[index]).resize(
                (size, size), Image.Resampling.BICUBIC
            )
            ink = np.asarray(digit)
            top, left = self.rng.integers(0, SCENE - size + 1, 2)
            place = (slice(top, top + size), slice(left, left + size))
            labels[place] = np.where(ink > 100, self.labels[index] + 1, labels[place])
            grey[place] = np.maximum(grey[place], ink)
        return grey, labels


def crop(arrays: np.ndarray, offsets: Int[np.ndarray, "N 2"]) -> np.ndarray:
    """A square of 64 pixels of each, at its own offset."""
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
    """A pyramid on a backbone of this name, trained with AdamW."""
    rngs = nnx.Rngs(seed)
    backbone = aa_flax.create_model(name, features_only=True, rngs=rngs)
    model = FeaturePyramid(backbone, CLASSES, upsample, rngs=rngs)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, max(1, steps // 10), steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-2)

    def loss(params, rest, images, labels):
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits = model(normalise(images))
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return errors.mean(), nnx.split(model, nnx.Param, ...)[2]

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
    """Mean intersection over union and consistency on new scenes of held-out digits, in percent.

    *agreement* is over all pixels that both crops see, *on digits* over those of them that either
    mask gives to a digit.
    """
    graphdef, state = nnx.split(model)
    masks = jax.jit(lambda s, x: nnx.merge(graphdef, s)(normalise(x)).argmax(-1))
    scenes, rng = Scenes(held_out=True, seed=10_000), np.random.default_rng(10_000)
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    agree = total = agree_on_digits = total_on_digits = 0
    for _ in range(count // BATCH):
        images, labels = scenes.draw(BATCH)
        offsets = rng.integers(0, SCENE - CROP + 1, (2, BATCH, 2))
        first, second = (np.asarray(masks(state, crop(images, o))) for o in offsets)
        np.add.at(confusion, (crop(labels, offsets[0]), first), 1)
        for a, b, *places in zip(first, second, *offsets, strict=True):
            a, b = _seen_by_both(a, b, *places)
            digits = (a > 0) | (b > 0)
            agree, total = agree + (a == b).sum(), total + a.size
            agree_on_digits += (a == b)[digits].sum()
            total_on_digits += digits.sum()
    hits = np.diag(confusion)
    unions = confusion.sum(0) + confusion.sum(1) - hits
    return {
        "mean IoU": 100 * float(np.mean(hits / np.maximum(unions, 1))),
        "agreement": 100 * agree / total,
        "on digits": 100 * agree_on_digits / total_on_digits,
    }


def _seen_by_both(a: np.ndarray, b: np.ndarray, place_a, place_b) -> tuple[np.ndarray, np.ndarray]:
    """The parts of two masks, of crops at two places, that show the same of the scene."""
    first, end = np.maximum(place_a, place_b), np.minimum(place_a, place_b) + CROP
    parts = []
    for mask, place in ((a, place_a), (b, place_b)):
        (top, left), (bottom, right) = first - place, end - place
        parts.append(mask[top:bottom, left:right])
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each variant")
    parser.add_argument("--scenes", type=int, default=256, help="to evaluate on")
    arguments = parser.parse_args()
    print(
        "| variant | mean IoU | agreement | on digits | seconds |\n|---|---|---|---|---|",
        flush=True,
    )
    for variant in arguments.variants:
        rows, start = [], time.perf_counter()
        for seed in range(arguments.seeds):
            model = train(*VARIANTS[variant], steps=arguments.steps, seed=seed)
            rows.append(list(evaluate(model, count=arguments.scenes).values()))
        seconds = (time.perf_counter() - start) / arguments.seeds
        means, spreads = np.mean(rows, axis=0), np.std(rows, axis=0)
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(means, spreads, strict=True)]
        print(f"| `{variant}` | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
