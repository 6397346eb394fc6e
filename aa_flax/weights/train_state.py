"""The state of training, which checkpoints contain, and a model's part in it."""

from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array

from aa_flax.models.classifier import Classifier


class TrainState(NamedTuple):
    """Everything that changes from step to step, and so the content of a checkpoint.

    Attributes:
        step: updates made so far, which is also the position in the data.
        params: `nnx.Param` values. batch_stats: `nnx.BatchStat` values.
        random_state: the rest of the model: keys and counters of its dropout.
        opt_state: state of the optimizer.
    """

    step: Array
    params: nnx.State
    batch_stats: nnx.State
    random_state: nnx.State
    opt_state: Any


def split_model(model: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """Returns graph definition, parameters, batch statistics and random state."""
    graphdef, params, batch_stats, random_state = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return graphdef, params, batch_stats, random_state


def update_model(model: Classifier, state: TrainState) -> Classifier:
    """Copies a state's variables into the model, in place; returns the model."""
    nnx.update(model, state.params, state.batch_stats, state.random_state)
    return model
