"""Checkpoints of a run, by Orbax: the latest, the best by top-1, and every tenth epoch's."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from orbax.checkpoint import v1 as ocp

from aa_flax.models.classifier import Classifier
from aa_flax.training.state import TrainState


def _top1(metrics: Any) -> float:
    return metrics["top1"]


_keep = ocp.training.preservation_policies
_POLICY: Any = _keep.AnyPreservationPolicy(
    [
        _keep.LatestN(1),
        _keep.BestN(get_metric_fn=_top1, n=1),
        _keep.EveryNSteps(10),
    ]
)


class Checkpoints:
    """A folder of checkpoints, numbered by completed epochs.

    Use as a context manager: leaving it waits until the last one is written.
    """

    def __init__(self, folder: Path):
        self._checkpointer = ocp.training.Checkpointer(
            str(folder.resolve()), preservation_policy=_POLICY, cleanup_tmp_directories=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checkpointer.close()

    @property
    def latest_epoch(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the highest top-1; the earlier one of two equals."""
        self._checkpointer.wait()
        found = self._checkpointer.checkpoints
        return max(found, key=lambda c: (_top1(c.metrics), -c.step)).step if found else None

    def save(self, epoch: int, state: TrainState, top1: float) -> None:
        """Starts writing the state after `epoch` epochs, and its top-1 in percent."""
        self._checkpointer.wait()  # a save asked for during another one would be left out
        # The next step overwrites the state's buffers while this one is still being written.
        copy = jax.tree.map(jnp.copy, state)
        self._checkpointer.save_checkpointables_async(epoch, copy._asdict(), metrics={"top1": top1})

    def restore(self, epoch: int, like: TrainState) -> TrainState:
        """The state after `epoch` epochs, placed as the arrays of `like` are."""
        parts = jax.tree.map(_abstract, like._asdict())
        return TrainState(**self._checkpointer.load_checkpointables(epoch, parts))

    def restore_model(self, epoch: int, model: Classifier) -> None:
        """Fills the model, in place, with the weights after `epoch` epochs."""
        _, params, rest = nnx.split(model, nnx.Param, ...)
        parts = jax.tree.map(_abstract, {"params": params, "rest": rest})
        loaded = self._checkpointer.load_checkpointables(epoch, parts)
        nnx.update(model, loaded["params"], loaded["rest"])


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
