"""The evaluation loop: runs a model on views of every image and records per-view statistics.

All measures of views follow from a few numbers for each image and view (`Observations`). They are
computed on the devices, gathered from all hosts at the end (until then hosts need not synchronise),
and sorted by the images' index in the data. The measures themselves are NumPy, in `measures/`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from aa_flax.data.batches import Batch, put_ahead
from aa_flax.data.sources import Source
from aa_flax.errors import InputError
from aa_flax.evaluation.predict import Predictor, logits_of, normalised, predictor_of
from aa_flax.evaluation.settings import Settings
from aa_flax.evaluation.views import Views, check_size
from aa_flax.runtime import progress_bar, put_batch, replicate

_PER_IMAGE = ("index", "label", "mask")


@dataclass(frozen=True)
class Observations:
    """Statistics of a model's predictions for n images, V views each; the same on every host."""

    index: Int[np.ndarray, " n"]  # of the image in the data, ascending
    label: Int[np.ndarray, " n"]  # the true class
    top: Int[np.ndarray, "n V k"]  # the five likeliest classes, or all if fewer; likeliest first
    rank: Int[np.ndarray, "n V"]  # classes likelier than the true one; all, if not finite
    log_probability: Float[np.ndarray, "n V"]  # of the true class
    log_other: Float[np.ndarray, "n V"]  # of the likeliest other class
    finite: Bool[np.ndarray, "n V"]  # whether all logits and the log-probability are

    @property
    def predicted(self) -> Int[np.ndarray, "n V"]:
        return self.top[..., 0]

    @property
    def correct(self) -> Bool[np.ndarray, "n V"]:
        return self.rank == 0

    @property
    def probability(self) -> Float[np.ndarray, "n V"]:
        """Probabilities of the true class."""
        return np.exp(self.log_probability)

    def check_finite(self) -> None:
        """Raises an InputError for outputs that are not finite: they would count as consistent."""
        if not self.finite.all():
            raise InputError(
                f"the model's output is not finite for {(~self.finite).sum()} of "
                f"{self.finite.size} views; its weights are broken, or its training diverged"
            )


def observe_source(
    predict: Any,
    source: Source,
    settings: Settings,
    views: Mapping[str, Views],
    *,
    crop: int,
    mesh: Mesh,
    title: str = "",
) -> dict[str, Observations]:
    """Observes the centres of `crop` pixels of a source's images, with a progress bar."""
    with progress_bar(len(source), title or ", ".join(views)) as bar:
        batches = settings.batches(source, crop)
        return observe(predict, batches, views, mesh=mesh, progress=bar)


def observe(
    predict: Any,
    batches: Iterable[Batch],
    views: Mapping[str, Views],
    *,
    mesh: Mesh,
    progress: tqdm | None = None,
) -> dict[str, Observations]:
    """Runs a model on all views of every image; each image is read once.

    Args:
        predict: a model (its batch norms use their running statistics), or a function; see
            `predictor_of`.
        batches: of `evaluation_batches`; masked images do not count.
        views: sets of views by name, as the result; equal sets are computed once.
        progress: a bar, advanced by one each image.

    Raises:
        InputError: images too small for a set of views.
    """
    predictor = predictor_of(predict)
    state = () if predictor.on_host else replicate(predictor.state, mesh)
    distinct = list(dict.fromkeys(views.values()))
    found: dict[Views, list] = {some: [] for some in distinct}

    def collect(statistics):
        for some, calls in statistics.items():
            found[some].append(_on_host(calls))
        if progress is not None and statistics:
            mask = found[next(iter(statistics))][-1]["mask"]
            progress.update(int(mask.sum()) * jax.process_count())

    before: dict[Views, Any] = {}
    for batch, on_device in put_ahead(batches, partial(put_batch, mesh=mesh)):
        for some in distinct:
            check_size(some, *batch["image"].shape[1:3])
        images = on_device["image"]
        position = {name: on_device[name] for name in ("index", "center") if name in on_device}
        per_image = {name: on_device[name] for name in _PER_IMAGE}
        predict_on = partial(_statistics_of, predictor, state, per_image, mesh)
        now = {
            some: [predict_on(_view(images, position, i, some, mesh)) for i in range(some.calls)]
            for some in distinct
        }
        collect(before)  # waits for the previous batch while the devices compute this one
        before = now
    collect(before)
    joined = {some: _joined(parts) for some, parts in found.items()}
    return {name: joined[some] for name, some in views.items()}


@partial(jax.jit, static_argnames=("views", "mesh"))
def _view(images: Array, position: dict[str, Array], call: int, views: Views, mesh: Mesh) -> Array:
    """Computes one call's views, apart from the model, which so compiles once for all views."""

    @partial(_on_each_device, mesh=mesh)
    def view(call, sharded):
        images, position = sharded
        return views(images, position, call).astype(jnp.float32)

    return view(jnp.asarray(call), (images, position))


def _statistics_of(
    predictor: Predictor, state: Any, batch: dict[str, Array], mesh: Mesh, seen: Array
) -> dict[str, Array]:
    """Runs the model on a call's views, in one forward pass."""
    if not predictor.on_host:
        return _predict(predictor.function, state, batch, seen, mesh=mesh)
    rows = _local(normalised(seen))
    logits = np.stack([predictor.call_on_host(rows[:, i]) for i in range(rows.shape[1])], 1)
    return _predict(None, (), batch, put_batch(logits, mesh), mesh=mesh)


@partial(jax.jit, static_argnames=("function", "mesh"))
def _predict(function, state, batch, seen: Array, mesh: Mesh) -> dict[str, Array]:
    """Computes statistics of logits: `seen` without a function, which is static to compile once."""

    @partial(_on_each_device, mesh=mesh)
    def predict(state, sharded):
        batch, seen = sharded
        logits = seen
        if function is not None:
            images = seen.reshape(-1, *seen.shape[2:])
            logits = logits_of(function, state, images).reshape(*seen.shape[:2], -1)
        return _statistics(logits, batch["label"][:, None, None]) | batch

    return predict(state, (batch, seen))


def _on_each_device(function: Callable, mesh: Mesh) -> Callable:
    """Maps `function(replicated, sharded)` over devices, without communication between them.

    Otherwise the compiler gathers images for some operations, and hosts wait for each other.
    """
    specs = (PartitionSpec(), PartitionSpec("data"))
    return jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"), check_vma=False
    )


def _statistics(logits: Float[Array, "N v C"], label: Int[Array, "N 1 1"]) -> dict[str, Array]:
    """Computes the per-view fields of `Observations`; equal logits rank by their class number."""
    classes = logits.shape[-1]
    log_p = jax.nn.log_softmax(logits)
    number = jnp.arange(classes)[None, None]
    is_label = number == label
    own = jnp.where(is_label, logits, -jnp.inf).max(-1, keepdims=True)
    likelier = (logits > own) | ((logits == own) & (number < label))
    finite = jnp.isfinite(logits).all(-1)
    log_own = jnp.where(is_label, log_p, 0).sum(-1)
    return {
        "top": lax.top_k(logits, min(5, classes))[1],
        "rank": jnp.where(finite, likelier.sum(-1), classes),
        "log_probability": log_own,
        "log_other": jnp.where(is_label, -jnp.inf, log_p).max(-1),
        "finite": finite & jnp.isfinite(log_own),
    }


def _on_host(calls: list[dict[str, Array]]) -> dict[str, np.ndarray]:
    """Fetches this host's images of a batch, with the views of all calls concatenated."""
    found = {name: _local(calls[0][name]) for name in _PER_IMAGE}
    for name in calls[0].keys() - found.keys():
        found[name] = np.concatenate([_local(call[name]) for call in calls], 1)
    return found


def _local(array: Array) -> np.ndarray:
    """Returns the rows of an array that are on this host's devices."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _joined(parts: list[dict[str, np.ndarray]]) -> Observations:
    """Joins the batches of all hosts, without masked images, in order."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if jax.process_count() > 1:
        joined = multihost_utils.process_allgather(joined, tiled=True)
    kept = np.flatnonzero(joined.pop("mask"))
    order = kept[np.argsort(joined["index"][kept])]
    return Observations(**{name: array[order] for name, array in joined.items()})
