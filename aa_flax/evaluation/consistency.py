"""Shift consistency: how often a net gives two shifted crops of an image the same class."""

from collections.abc import Iterable
from functools import partial
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int
from tqdm import tqdm

from aa_flax.data.loader import Batch
from aa_flax.data.transforms import crop_at
from aa_flax.errors import InputError
from aa_flax.evaluation.accuracy import inference_state, logits_of
from aa_flax.models.classifier import Classifier
from aa_flax.sharding import put_batch


class Consistency(TypedDict):
    """Percentages over all images and passes.

    Attributes:
        consistency: pairs of crops with the same top-1 class.
        consistency_ci95: half the width of its 95 % confidence interval; the images are the sample.
        top1_shifted: crops classified correctly.
        passes: pairs of crops drawn for each image. seed: of the offsets.
    """

    num_images: int
    consistency: float
    consistency_ci95: float
    top1_shifted: float
    passes: int
    seed: int


@partial(jax.jit, static_argnames=("passes", "shift_range"))
def random_offsets(
    seed: int, index: Int[Array, " N"], passes: int, shift_range: int
) -> Int[Array, "N passes 2 2"]:
    """Offsets (top, left) of two crops for each image and pass, uniform in 0..shift_range-1.

    They depend on the seed and the image's place in the data alone, so neither on the batch size
    nor on the order of images nor on the number of devices.
    """

    def draw(i):
        key = jax.random.fold_in(jax.random.key(seed), i)
        return jax.random.randint(key, (passes, 2, 2), 0, shift_range)

    return jax.vmap(draw)(index)


def evaluate_consistency(
    model: Classifier,
    batches: Iterable[Batch],
    *,
    crop_size: int,
    shift_range: int,
    mesh: Mesh,
    passes: int = 5,
    seed: int = 0,
    progress: tqdm | None = None,
) -> Consistency:
    """Agreement of the top-1 class between two crops at random offsets (Zhang 2019, Sec. 4.1).

    Args:
        model: the net; its batch norms use their running statistics.
        batches: of `evaluation_batches`, images larger than the crop.
        crop_size: side of a crop in pixels.
        shift_range: offsets are drawn from 0..shift_range-1 pixels on each axis (32 in the paper).
        passes: pairs of crops for each image.
        progress: a bar, advanced by one each image.

    Raises:
        InputError: images too small for these crops and offsets.
    """
    graphdef, state = inference_state(model, mesh)
    agreements, hits = [], []
    for batch in batches:
        _check_size(batch["image"].shape[1:3], crop_size, shift_range)
        on_device = put_batch(batch, mesh)
        offsets = random_offsets(seed, on_device["index"], passes, shift_range)
        classes = [
            _classify_pair(graphdef, state, on_device["image"], offsets[:, i], crop_size)
            for i in range(passes)
        ]
        classes = np.stack([np.asarray(c) for c in classes], 1)[batch["mask"]]  # (n, passes, 2)
        agreements.append((classes[..., 0] == classes[..., 1]).mean(1))
        hits.append((classes == batch["label"][batch["mask"], None, None]).mean((1, 2)))
        if progress is not None:
            progress.update(len(classes))
    agreement = np.concatenate(agreements)  # one figure for each image
    return {
        "num_images": len(agreement),
        "consistency": 100 * float(agreement.mean()),
        "consistency_ci95": 100 * 1.96 * float(agreement.std() / np.sqrt(len(agreement))),
        "top1_shifted": 100 * float(np.concatenate(hits).mean()),
        "passes": passes,
        "seed": seed,
    }


@partial(jax.jit, static_argnames=("graphdef", "crop_size"))
def _classify_pair(graphdef, state, images: Array, offsets: Array, crop_size: int) -> Array:
    """Top-1 classes `(N, 2)` of the crops at offsets `(N, 2, 2)`, in one forward pass."""
    pair = jnp.concatenate([crop_at(images, offsets[:, i], crop_size) for i in (0, 1)])
    return logits_of(graphdef, state, pair).argmax(-1).reshape(2, -1).T


def _check_size(size: tuple[int, ...], crop_size: int, shift_range: int) -> None:
    needed = crop_size + shift_range - 1
    if min(size) < needed:
        raise InputError(
            f"images of {size[0]}x{size[1]} pixels are too small for crops of {crop_size} at "
            f"offsets 0..{shift_range - 1}: they need {needed}; change config.data.image_size, "
            "crop_size or shift_range"
        )
