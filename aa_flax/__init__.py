"""Antialiased convolutional networks in JAX and Flax."""

from aa_flax.create import create_model
from aa_flax.data.sources import register_source
from aa_flax.errors import InputError
from aa_flax.evaluation.evaluate import evaluate
from aa_flax.evaluation.measure import Column, Measure, Option, register_measure
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import list_models, register_model
from aa_flax.ops.blur import blur_pool
from aa_flax.pools import BlurPool, MaxBlurPool, list_pools, register_pool
from aa_flax.weights.files import load_torch_state_dict, load_weights, save_weights
from aa_flax.weights.torch_format import to_torch_state_dict

__all__ = [
    "BlurPool",
    "Classifier",
    "Column",
    "InputError",
    "MaxBlurPool",
    "Measure",
    "Option",
    "blur_pool",
    "create_model",
    "evaluate",
    "list_models",
    "list_pools",
    "load_torch_state_dict",
    "load_weights",
    "register_measure",
    "register_model",
    "register_pool",
    "register_source",
    "save_weights",
    "to_torch_state_dict",
]

__version__ = "0.1.0"
