"""Antialiased convolutional networks in JAX and Flax."""

from aa_flax.create import create_model
from aa_flax.errors import InputError
from aa_flax.models.registry import list_models
from aa_flax.ops.blur import blur_pool
from aa_flax.pools.blur import BlurPool, MaxBlurPool
from aa_flax.weights.files import load_torch_state_dict, load_weights, save_weights
from aa_flax.weights.torch_format import to_torch_state_dict

__all__ = [
    "BlurPool",
    "InputError",
    "MaxBlurPool",
    "blur_pool",
    "create_model",
    "list_models",
    "load_torch_state_dict",
    "load_weights",
    "save_weights",
    "to_torch_state_dict",
]

__version__ = "0.1.0"
