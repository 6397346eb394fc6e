"""The one loop of all evaluations: a net looks at views of every image, what it says is kept.

Everything measured here follows from a few numbers for each image and view (`Observations`); they
are computed on the devices, gathered from all hosts at the end (the hosts need not keep step until
then), and ordered by the images' place in the data. The measures themselves are NumPy, in the
modules beside this one.
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
from aa_flax.errors import InputError
from aa_flax.evaluation.predict import Predictor, logits_of, normalised, predictor_of
from aa_flax.evaluation.views import Views, check_size
from aa_flax.runtime import put_batch, replicate

_PER_IMAGE = ("index", "label", "mask")


@dataclass(frozen=True)
class Observations:
    """What a net said of n images, V views each; the same on every host.

    Attributes:
        index: place in the data, ascending. label: the true class.
        top: the five likeliest classes (all, of fewer), likeliest first.
        rank: how many classes are likelier than the true one; all, where the output is not finite.
        log_probability: of the true class. log_other: of the likeliest other class.
        finite: whether all logits, and the log-probability, are.
    """

    index: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    top: Int[np.ndarray, "n V k"]
    rank: Int[np.ndarray, "n V"]
    log_probability: Float[np.ndarray, "n V"]
    log_other: Float[np.ndarray, "n V"]
    finite: Bool[np.ndarray, "n V"]

    @property
    def predicted(self) -> Int[np.ndarray, "n V"]:
        return self.top[..., 0]

    @property
    def correct(self) -> Bool[np.ndarray, "n V"]:
        return self.rank == 0

    @property
    def probability(self) -> Float[np.ndarray, "n V"]:
        """Probability of the true class."""
        return np.exp(self.log_probability)

    def check_finite(self) -> None:
        """Raises an InputError for outputs that are not finite: they prove nothing."""
        if not self.finite.all():
            raise InputError(
                f"the net's output is not finite for {(~self.finite).sum()} of "
                f"{self.finite.size} views; its weights are broken, or its training diverged"
            )


def observe(
    predict: Any,
    batches: Iterable[Batch],
    views: Mapping[str, Views],
    *,
    mesh: Mesh,
    progress: tqdm | None = None,
) -> dict[str, Observations]:
    """Shows a net all views of every image; each image is read once.

    Args:
        predict: a net (its batch norms use their running statistics), or a function; see
            `predictor_of`.
        batches: of `evaluation_batches`; masked images do not count.
        views: sets of views by name; equal ones are looked at once.
        progress: a bar, advanced by one each image.

    Returns:
        The observations of each set.

    Raises:
        InputError: images too small for a set of views.
    """
    predictor = predictor_of(predict)
    state = () if predictor.on_host else replicate(predictor.state, mesh)
    distinct = list(dict.fromkeys(views.values()))
    found: dict[Views, list] = {some: [] for some in distinct}

    def collect(said):
        for some, calls in said.items():
            found[some].append(_on_host(calls))
        if progress is not None and said:
            mask = found[next(iter(said))][-1]["mask"]
            progress.update(int(mask.sum()) * jax.process_count())

    before: dict[Views, Any] = {}
    for batch, on_device in put_ahead(batches, partial(put_batch, mesh=mesh)):
        for some in distinct:
            check_size(some, *batch["image"].shape[1:3])
        images, placed = on_device["image"], _parts(on_device, "index", "center")
        look = partial(_look_with, predictor, state, _parts(on_device, *_PER_IMAGE), mesh)
        now = {
            some: [look(_show(images, placed, i, some, mesh)) for i in range(some.calls)]
            for some in distinct
        }
        collect(before)  # waits for the batch before, while the devices work on this one
        before = now
    collect(before)
    joined = {some: _joined(parts) for some, parts in found.items()}
    return {name: joined[some] for name, some in views.items()}


def _parts(batch: Mapping[str, Array], *names: str) -> dict[str, Array]:
    return {name: batch[name] for name in names if name in batch}


@partial(jax.jit, static_argnames=("views", "mesh"))
def _show(images: Array, placed: dict[str, Array], call: int, views: Views, mesh: Mesh) -> Array:
    """The views of one call: apart from the net, so that it compiles once for all sets of views."""

    @partial(_on_each_device, mesh=mesh)
    def show(call, mine):
        images, placed = mine
        return views(images, placed, call).astype(jnp.float32)

    return show(jnp.asarray(call), (images, placed))


def _look_with(
    predictor: Predictor, state: Any, batch: dict[str, Array], mesh: Mesh, seen: Array
) -> dict[str, Array]:
    """What the net says of a call's views, in one forward pass."""
    if not predictor.on_host:
        return _look(predictor.function, state, batch, seen, mesh=mesh)
    rows = _local(normalised(seen))
    logits = np.stack([predictor.call_on_host(rows[:, i]) for i in range(rows.shape[1])], 1)
    return _judge(put_batch(logits, mesh), batch, mesh=mesh)


@partial(jax.jit, static_argnames=("function", "mesh"))
def _look(function, state, batch, seen: Array, mesh: Mesh) -> dict[str, Array]:
    """With the function as a static argument, a net compiles once, not once a call."""

    @partial(_on_each_device, mesh=mesh)
    def look(state, mine):
        batch, seen = mine
        images = seen.reshape(-1, *seen.shape[2:])
        logits = logits_of(function, state, images).reshape(*seen.shape[:2], -1)
        return _figures(logits, batch["label"][:, None, None]) | batch

    return look(state, (batch, seen))


@partial(jax.jit, static_argnames="mesh")
def _judge(logits: Array, batch: dict[str, Array], mesh: Mesh) -> dict[str, Array]:
    """What is kept of logits that were computed elsewhere."""

    @partial(_on_each_device, mesh=mesh)
    def judge(_, mine):
        batch, logits = mine
        return _figures(logits, batch["label"][:, None, None]) | batch

    return judge((), (batch, logits))


def _on_each_device(function: Callable, mesh: Mesh) -> Callable:
    """`function(shared, mine)`, each device with its own images and no word to the others.

    Left to itself the compiler gathers images for some operations; hosts would wait for each other.
    """
    specs = (PartitionSpec(), PartitionSpec("data"))
    return jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"), check_vma=False
    )


def _figures(logits: Float[Array, "N v C"], label: Int[Array, "N 1 1"]) -> dict[str, Array]:
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
    """This host's images of a batch, the views of all calls side by side."""
    said = {name: _local(calls[0][name]) for name in _PER_IMAGE}
    for name in calls[0].keys() - said.keys():
        said[name] = np.concatenate([_local(call[name]) for call in calls], 1)
    return said


def _local(array: Array) -> np.ndarray:
    """The rows of an array that are on this host's devices."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _joined(parts: list[dict[str, np.ndarray]]) -> Observations:
    """All batches of all hosts, without masked images, in order."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if jax.process_count() > 1:
        joined = multihost_utils.process_allgather(joined, tiled=True)
    kept = np.flatnonzero(joined.pop("mask"))
    order = kept[np.argsort(joined["index"][kept])]
    return Observations(**{name: array[order] for name, array in joined.items()})
