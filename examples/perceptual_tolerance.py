"""The perceptual distance of a shift by one pixel, with plain and antialiased trunks.

Prints the distance (LPIPS) between crops of a photograph one pixel apart, which look the same, and
those to noisy, compressed or blurred crops, which do not, and to another photograph; in percent of
the last one. The photographs come with scikit-learn.

    python examples/perceptual_tolerance.py [--weights alexnet.pth] [--models alexnet alexnet_lpf4]

All models have copies of the plain one's weights (AlexNet and VGG16 have no batch statistics, which
would need matching); without a file they are random. The weights of the channels are those of the
package lpips, if it is installed.
"""

import argparse
import io
from importlib.util import find_spec

import jax
import numpy as np
from flax import nnx
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

import aa_flax
from aa_flax.models.backbone import Backbone

CROP, NOISE = 128, 0.05  # pixels; standard deviation of values in 0..1


def crops(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns crops of photographs, and the same one pixel away on each axis, in 0..1."""
    rng, pairs = np.random.default_rng(seed), []
    photographs = load_sample_images().images
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = rng.integers(0, np.array(photograph.shape[:2]) - CROP)
        both = (photograph[y : y + CROP, x : x + CROP] for y, x in _near(top, left))
        pairs.append(np.stack(list(both)) / np.float32(255))
    first, second = np.moveaxis(np.stack(pairs), 1, 0)
    return first, second


def _near(top: int, left: int) -> list[tuple[int, int]]:
    return [(top, left), (top + 1, left + 1)]


def noisy(images: np.ndarray) -> np.ndarray:
    """Adds white noise."""
    noise = np.random.default_rng(1).normal(scale=NOISE, size=images.shape)
    return np.clip(images + noise, 0, 1).astype(np.float32)


def compressed(images: np.ndarray) -> np.ndarray:
    """Compresses as JPEG of quality 10."""
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray((255 * image).round().astype(np.uint8)).save(file, "JPEG", quality=10)
        found.append(np.asarray(Image.open(file)) / np.float32(255))
    return np.stack(found)


def blurred(images: np.ndarray) -> np.ndarray:
    """Blurs with a Gaussian of 2 pixels."""
    return gaussian_filter(images, (0, 2, 2, 0))


def with_plain_weights(name: str, weights: str | None) -> Backbone:
    """Returns a trunk with the weights of its model without antialiasing."""
    plain = aa_flax.create_model(
        name.partition("_lpf")[0], pretrained=weights or False, features_only=True
    )
    trunk = aa_flax.create_model(name, features_only=True)
    nnx.update(trunk, nnx.state(plain))
    return trunk


def distances(distance: aa_flax.PerceptualDistance, count: int) -> dict[str, float]:
    """Returns the mean distance of crops to shifted ones, to degraded ones, and to others."""
    graphdef, state = nnx.split(distance)
    compare = jax.jit(lambda x, y: nnx.merge(graphdef, state)(x, y).mean())
    first, shifted = crops(count)
    others = {
        "shift": shifted,
        "noise": noisy(first),
        "JPEG": compressed(first),
        "blur": blurred(first),
        "other": np.roll(first, 1, axis=0),
    }
    return {name: float(compare(first, images)) for name, images in others.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["alexnet", "alexnet_lpf4", "alexnet_lpf5"])
    parser.add_argument("--weights", help="a file of weights of the plain model, or of its trunk")
    parser.add_argument("--crops", type=int, default=32)
    arguments = parser.parse_args()
    print("| model | shift | noise | JPEG | blur | other |\n" + "|---" * 6 + "|")
    for name in arguments.models:
        distance = aa_flax.PerceptualDistance(
            with_plain_weights(name, arguments.weights),
            channel_weights="lpips" if find_spec("lpips") else None,
        )
        found = distances(distance, arguments.crops)
        cells = [f"{x:.4f} ({100 * x / found['other']:.1f} %)" for x in found.values()]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
