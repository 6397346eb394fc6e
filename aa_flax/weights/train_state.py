"""The state of training, which checkpoints contain, and a model's part in it."""

from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array

from aa_flax.models.classifier import Classifier


class TrainState(NamedTuple):
    """Everything that changes from step to step, and so the content of a checkpoint."""

    step: Array  # updates made so far, which is also the position in the data
    params: nnx.State  # of `nnx.Param`
    batch_stats: nnx.State  # of `nnx.BatchStat`
    random_state: nnx.State  # the rest of the model: keys and counters of its dropout
    opt_state: Any  # of the optimizer


def split_model(model: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """Returns graph definition, parameters, batch statistics and random state."""
    return nnx.split(model, nnx.Param, nnx.BatchStat, ...)  # pyright: ignore[reportReturnType]


def update_model(model: Classifier, state: TrainState) -> Classifier:
    """Copies a state's variables into the model, in place; returns the model."""
    nnx.update(model, state.params, state.batch_stats, state.random_state)
    return model
