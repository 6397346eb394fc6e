"""Differences of features and logits from torch's, with true weights on photographs.

`true_weights.py` prints the table.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from packaged import trunk
from reference import antialiased_cnns, relative_difference, torchvision
from safetensors.numpy import save_file

from aa_flax import create_model
from aa_flax.models.registry import parse_name

MODELS = ("alexnet", "vgg16", "mobilenet_v2")
COLUMNS = (
    "ours - theirs",
    "ours - theirs64",
    "theirs - theirs64",
    "ours bf16 - theirs64",
    "theirs autocast - theirs64",
)


def our_trunk(name: str, dtype: Any = None) -> nnx.Module:
    """Returns the trunk of a plain or antialiased model with the true weights of the plain one."""
    base, filter_size = parse_name(name)
    options: Any = {"features_only": True, "out_indices": [-1], "dtype": dtype}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{base}.safetensors"
        save_file({n: np.ascontiguousarray(a) for n, a in trunk(base).items()}, path)
        plain = create_model(base, pretrained=path, **options)
    if filter_size is None:
        return plain
    model = nnx.eval_shape(lambda: create_model(name, **options))
    nnx.update(model, nnx.state(plain))
    return model


def their_model(name: str, weights: dict[str, Any]) -> torch.nn.Module:
    """Returns torchvision's model, or the original's antialiased one, with these weights."""
    base, filter_size = parse_name(name)
    plain = getattr(torchvision.models, base)()
    tensors = {n: torch.as_tensor(np.ascontiguousarray(a)) for n, a in weights.items()}
    assert not plain.load_state_dict(tensors, strict=False).unexpected_keys
    if filter_size is None:
        return plain.eval()
    model = getattr(antialiased_cnns, base)(filter_size=filter_size)
    for ours, theirs in zip(_layers(plain), _layers(model), strict=True):
        theirs.load_state_dict(ours.state_dict())
    return model.eval()


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Returns the layers with weights, whose order antialiasing does not change."""
    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)
    return [layer for layer in model.modules() if isinstance(layer, kinds)]


def their_trunk(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """Returns the layers up to the last map of `features_only`."""
    features: Any = model.features
    return features[:-1] if name.startswith("mobilenet") else features


def run(model: nnx.Module, x: np.ndarray) -> np.ndarray:
    """Returns our logits, or our last map in torch's layout."""
    graph, state = nnx.split(model)
    found = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)
    if isinstance(found, list):
        (found,) = found
        found = found.transpose(0, 3, 1, 2)
    return np.asarray(found.astype(jnp.float32))


def compared(ours: nnx.Module, half: nnx.Module, theirs: torch.nn.Module, x: np.ndarray) -> dict:
    """Returns the columns of the table: largest differences over the largest value."""
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        theirs32 = theirs(images).numpy()
        with torch.autocast("cpu", torch.bfloat16):
            theirs16 = theirs(images).float().numpy()
        theirs64 = theirs.double()(images.double()).numpy()
    ours32, ours16 = run(ours, x), run(half, x)
    pairs = (ours32, theirs32), (ours32, theirs64), (theirs32, theirs64)
    pairs += (ours16, theirs64), (theirs16, theirs64)
    return {c: relative_difference(a, b) for c, (a, b) in zip(COLUMNS, pairs, strict=True)}


def maps(name: str, x: np.ndarray) -> dict[str, float]:
    """Compares the last maps of a model with the true weights of its plain trunk."""
    base, _ = parse_name(name)
    theirs = their_trunk(their_model(name, trunk(base)), name)
    return compared(our_trunk(name), our_trunk(name, jnp.bfloat16), theirs, x)


def logits(classifier: Path, name: str, x: np.ndarray) -> dict[str, float]:
    """Compares the logits of a MobileNetV2, plain or antialiased, with the same weights."""
    plain = create_model("mobilenet_v2", pretrained=classifier)

    def ours(dtype: Any) -> nnx.Module:
        model = nnx.eval_shape(lambda: create_model(name, dtype=dtype))
        nnx.update(model, nnx.state(plain))
        return model

    theirs = their_model(name, torch.load(classifier, weights_only=True))
    return compared(ours(None), ours(jnp.bfloat16), theirs, x)
