"""The net of a run, and the weights it starts from."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from aa_flax.config import Config
from aa_flax.create import create_model
from aa_flax.data.sources import make_source
from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import parse_name
from aa_flax.sharding import is_main_process
from aa_flax.training.checkpoints import Checkpoints
from aa_flax.weights.torch_format import load_torch_state_dict, read_torch_file


def model_of(config: Config, num_classes: int | None = None) -> Classifier:
    """The net of a config, with fresh weights.

    Args:
        num_classes: default: those of the config's data.
    """
    if num_classes is None:
        num_classes = make_source(config.data, "val").num_classes
    model = create_model(
        config.model, num_classes=num_classes, rngs=nnx.Rngs(config.seed), dtype=config.dtype
    )
    model.remat = config.remat
    return model
def init_from(source: str, model: Classifier) -> None:
    pass
