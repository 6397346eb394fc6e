"""Accuracy of a net on images as they are: top-1, top-5 and loss."""

from collections.abc import Iterable
from functools import partial
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array
from tqdm import tqdm

from aa_flax.data.loader import Batch
from aa_flax.data.transforms import center_crop, normalise
from aa_flax.models.classifier import Classifier
from aa_flax.sharding import put_batch, replicated


class Accuracy(TypedDict):
    """`top1` and `top5` in percent (top-5 of fewer than 5 classes counts them all); mean `loss`."""

    num_images: int
    top1: float
    top5: float
    loss: float


def evaluate_accuracy(
    model: Classifier,
    batches: Iterable[Batch],
    *,
    crop_size: int,
    mesh: Mesh,
    progress: tqdm | None = None,
) -> Accuracy:
    """Classifies the centre crop of every image; masked images do not count.

    Args:
        model: the net; its batch norms use their running statistics.
        batches: of `evaluation_batches`.
        crop_size: side of the crop in pixels.
        progress: a bar, advanced by one each image.
    """
    graphdef, state = inference_state(model, mesh)
    totals = dict.fromkeys(Accuracy.__annotations__, 0.0)
    for batch in batches:
        for name, value in _count(graphdef, state, put_batch(batch, mesh), crop_size).items():
            totals[name] += value.item()
        if progress is not None:
            progress.update(int(batch["mask"].sum()))
    images = int(totals["num_images"])
    return {
        "num_images": images,
        "top1": 100 * totals["top1"] / images,
        "top5": 100 * totals["top5"] / images,
        "loss": totals["loss"] / images,
    }


def inference_state(model: Classifier, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """The net in evaluation mode, split; its state is on every device of the mesh."""
    model.eval()
    graphdef, state = nnx.split(model)
    return graphdef, jax.device_put(state, replicated(mesh))


def logits_of(graphdef: nnx.GraphDef, state: nnx.State, images: Array) -> Array:
    """float32 logits `(N, classes)` of uint8 images `(N, H, W, 3)`, for use under `jax.jit`.

    With the graph definition as a static argument, a net compiles once, not once a call.
    """
    model: Any = nnx.merge(graphdef, state, copy=True)
    return model(normalise(images)).astype(jnp.float32)


@partial(jax.jit, static_argnames=("graphdef", "crop_size"))
def _count(graphdef: nnx.GraphDef, state: nnx.State, batch: Any, crop_size: int):
    """Sums over the images of a batch that are not masked."""
    logits = logits_of(graphdef, state, center_crop(batch["image"], crop_size))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    _, top5 = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = top5 == batch["label"][:, None]
    mask = batch["mask"]
    return {
        "num_images": mask.sum(),
        "top1": (hits[:, 0] & mask).sum(),
        "top5": (hits.any(-1) & mask).sum(),
        "loss": jnp.where(mask, losses, 0).sum(),
    }
