"""Batch statistics estimated anew within a run, from the images it trains on."""

from collections.abc import Iterable
from functools import partial

import jax
from jax.sharding import Mesh

from aa_flax.config import Config
from aa_flax.data.pixels import preprocess_batch
from aa_flax.models.classifier import Classifier
from aa_flax.models.recalibrate import check_batch_norms, recalibrate_batch_norm
from aa_flax.runtime import replicate
from aa_flax.training.state import OnDevice, TrainState, split_model, update_model


def check_recalibration(config: Config, model: Classifier) -> None:
    """Raises an InputError if a run is to estimate statistics that its net does not have."""
    if config.recalibrate_batches:
        check_batch_norms(model)


def recalibrated(
    model: Classifier, state: TrainState, batches: Iterable[OnDevice], config: Config, mesh: Mesh
) -> TrainState:
    """The state with batch statistics estimated anew; the model takes up all of it."""
    images = map(jax.jit(partial(preprocess_batch, data=config.data)), batches)
    recalibrate_batch_norm(update_model(model, state), images, mesh=mesh)
    _, _, batch_stats, _ = split_model(model)
    return state._replace(batch_stats=replicate(batch_stats, mesh))
