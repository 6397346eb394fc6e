"""The one loop of all evaluations: a net looks at views of every image, what it says is kept.

Everything measured here follows from a few numbers for each image and view (`Observations`); they
are computed on the devices, gathered from all hosts at the end (the hosts need not keep step until
then), and ordered by the images' place in the data. The figures themselves are NumPy, in the
modules beside this one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from aa_flax.data.loader import Batch, put_ahead
from aa_flax.data.transforms import normalise
from aa_flax.evaluation.views import Views, check_size
from aa_flax.models.classifier import Classifier
from aa_flax.sharding import is_main_process, put_batch, replicate


@dataclass(frozen=True)
class Observations:
    """What a net said of n images, V views each; the same on every host.

    Attributes:
        index: place in the data, ascending. label: the true class.
        top: the five likeliest classes (all, of fewer), likeliest first.
        rank: how many classes are likelier than the true one; all, where the output is not finite.
        log_probability: of the true class. log_other: of the likeliest other class.
    """

    index: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    top: Int[np.ndarray, "n V k"]
    rank: Int[np.ndarray, "n V"]
    log_probability: Float[np.ndarray, "n V"]
    log_other: Float[np.ndarray, "n V"]

    @property
    def predicted(self) -> Int[np.ndarray, "n V"]:
        return self.top[..., 0]

    @property
    def correct(self) -> Bool[np.ndarray, "n V"]:
        return self.rank == 0

    @property
    def probability(self) -> Float[np.ndarray, "n V"]:
        """Of the true class."""
        return np.exp(self.log_probability)


def observe(
    model: Classifier,
    batches: Iterable[Batch],
    views: Mapping[str, Views],
    *,
    mesh: Mesh,
    progress: tqdm | None = None,
) -> dict[str, Observations]:
    """Shows a net all views of every image; each image is read once.

    Args:
        model: the net; its batch norms use their running statistics.
        batches: of `evaluation_batches`; masked images do not count.
        views: sets of views by name.
        progress: a bar, advanced by one each image.

    Returns:
        The observations of each set.

    Raises:
        InputError: images too small for a set of views.
    """
    graphdef, state = inference_state(model, mesh)
    found: dict[str, list] = {name: [] for name in views}

    def collect(said):
        for name, calls in said.items():
            found[name].append(_on_host(calls))
        if progress is not None and said:
            mask = found[next(iter(said))][-1]["mask"]
            progress.update(int(mask.sum()) * jax.process_count())

    before: dict[str, Any] = {}
    for batch, on_device in put_ahead(batches, partial(put_batch, mesh=mesh)):
        for some in views.values():
            check_size(some, *batch["image"].shape[1:3])
        images = on_device.pop("image")
        look = partial(_look, graphdef, state, on_device, mesh=mesh)
        now = {
            name: [
                look(seen=_show(images, on_device["index"], i, some, mesh))
                for i in range(some.calls)
            ]
            for name, some in views.items()
        }
        collect(before)  # waits for the batch before, while the devices work on this one
        before = now
    collect(before)
    return {name: _joined(parts) for name, parts in found.items()}


def inference_state(model: Classifier, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """The net in evaluation mode, split; its state is on every device of the mesh."""
    model.eval()
    graphdef, state = nnx.split(model)
    return graphdef, replicate(state, mesh)


def logits_of(graphdef: nnx.GraphDef, state: nnx.State, images: Array) -> Array:
    """float32 logits `(N, classes)` of images `(N, H, W, 3)` in 0..255, for use under `jax.jit`.

    With the graph definition as a static argument, a net compiles once, not once a call.
    """
    model: Any = nnx.merge(graphdef, state, copy=True)
    return model(normalise(images)).astype(jnp.float32)


@partial(jax.jit, static_argnames=("views", "mesh"))
def _show(images: Array, index: Array, call: int, views: Views, mesh: Mesh) -> Array:
    """The views of one call: apart from the net, so that it compiles once for all sets of views."""

    @partial(_on_each_device, mesh=mesh)
    def show(call, mine):
        images, index = mine
        return views(images, index, call).astype(jnp.float32)

    return show(jnp.asarray(call), (images, index))


@partial(jax.jit, static_argnames=("graphdef", "mesh"))
def _look(graphdef, state, batch, seen: Array, mesh: Mesh) -> dict[str, Array]:
    """What the net says of a call's views, in one forward pass."""

    @partial(_on_each_device, mesh=mesh)
    def look(state, mine):
        batch, seen = mine
        images = seen.reshape(-1, *seen.shape[2:])
        logits = logits_of(graphdef, state, images).reshape(*seen.shape[:2], -1)
        return _figures(logits, batch["label"][:, None, None]) | batch

    return look(state, (batch, seen))


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
    is_label = jnp.arange(classes) == label
    own = jnp.where(is_label, logits, -jnp.inf).max(-1, keepdims=True)
    likelier = (logits > own) | ((logits == own) & (jnp.arange(classes) < label))
    finite = jnp.isfinite(logits).all(-1)
    return {
        "top": lax.top_k(logits, min(5, classes))[1],
        "rank": jnp.where(finite, likelier.sum(-1), classes),
        "log_probability": jnp.where(is_label, log_p, 0).sum(-1),
        "log_other": jnp.where(is_label, -jnp.inf, log_p).max(-1),
    }


_PER_IMAGE = ("index", "label", "mask")


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


def progress(total: int | None, name: str, unit: str = "img") -> tqdm:
    """A bar with images a second and the time left, on the first host and on a terminal alone."""
    disable = None if is_main_process() else True  # None: off unless on a terminal
    return tqdm(total=total, desc=name, unit=unit, leave=False, disable=disable)
