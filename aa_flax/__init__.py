"""Antialiased convolutional networks in JAX and Flax."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aa_flax.create import create_model
from aa_flax.data.sources import register_source
from aa_flax.errors import InputError
from aa_flax.models.backbone import Backbone
from aa_flax.models.classifier import Classifier
from aa_flax.models.fuse import fuse
from aa_flax.models.match import match_statistics
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.recalibrate import recalibrate_batch_norm
from aa_flax.models.registry import list_models, register_model
from aa_flax.models.shapes import FeatureLevel
from aa_flax.ops.blur import blur_pool
from aa_flax.ops.upsample import blur_upsample
from aa_flax.perceptual import PerceptualDistance
from aa_flax.pools import BlurPool, BlurUpsample, MaxBlurPool, list_pools, register_pool
from aa_flax.runtime import tune_cpu
from aa_flax.transform import antialias
from aa_flax.transform.canonical import canonical, canonical_crop
from aa_flax.transform.from_torch import from_torch
from aa_flax.weights.save_load import load_torch_state_dict, load_weights, save_weights
from aa_flax.weights.state_dicts import to_torch_state_dict

if TYPE_CHECKING:
    from aa_flax.data.classes import imagenet_class_names
    from aa_flax.data.preprocessing import preprocess
    from aa_flax.evaluation.evaluate import evaluate
    from aa_flax.evaluation.lie import (
        lie_derivative,
        lie_derivative_by_layer,
        local_equivariance_error,
    )
    from aa_flax.evaluation.measures import Column, Measure, Option, register_measure
    from aa_flax.export import export
    from aa_flax.report.pretrained import from_pretrained, push_to_hub, save_pretrained
    from aa_flax.training.distill import distill

__all__ = [
    "Backbone",
    "BlurPool",
    "BlurUpsample",
    "Classifier",
    "Column",
    "FeatureLevel",
    "InputError",
    "MaxBlurPool",
    "Measure",
    "ModelConfig",
    "Option",
    "PerceptualDistance",
    "antialias",
    "blur_pool",
    "blur_upsample",
    "canonical",
    "canonical_crop",
    "create_model",
    "distill",
    "evaluate",
    "export",
    "from_pretrained",
    "from_torch",
    "fuse",
    "imagenet_class_names",
    "lie_derivative",
    "lie_derivative_by_layer",
    "list_models",
    "list_pools",
    "load_torch_state_dict",
    "load_weights",
    "local_equivariance_error",
    "match_statistics",
    "preprocess",
    "push_to_hub",
    "recalibrate_batch_norm",
    "register_measure",
    "register_model",
    "register_pool",
    "register_source",
    "save_pretrained",
    "save_weights",
    "to_torch_state_dict",
    "tune_cpu",
]

__version__ = "0.2.0"

# Loaded on first use: evaluation imports Grain and Orbax, which takes as long as importing JAX.
# `Measure` is loaded from the built-in measures, which are thus registered before those of users.
_LAZY = {
    "distill": "aa_flax.training.distill",
    "evaluate": "aa_flax.evaluation.evaluate",
    "export": "aa_flax.export",
    "imagenet_class_names": "aa_flax.data.classes",
    "preprocess": "aa_flax.data.preprocessing",
    **dict.fromkeys(
        ("from_pretrained", "push_to_hub", "save_pretrained"), "aa_flax.report.pretrained"
    ),
    **dict.fromkeys(
        ("lie_derivative", "lie_derivative_by_layer", "local_equivariance_error"),
        "aa_flax.evaluation.lie",
    ),
    **dict.fromkeys(
        ("Column", "Measure", "Option", "register_measure"), "aa_flax.evaluation.measures"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    module = import_module(_LAZY[name])
    return globals().get(name) or getattr(module, name)  # `export` is the module, which is called


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
