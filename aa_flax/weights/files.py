"""Weights as safetensors: one file, no code in it, its metadata naming net, source and licence."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
from flax import nnx
from safetensors.numpy import save_file

from aa_flax.errors import InputError
from aa_flax.files import local_path, not_written, parse_json, replacing
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import IMAGE_FIELDS
from aa_flax.nn.layers import refuse_folded
from aa_flax.weights.content import (
    content_of,
    is_safetensors,
    not_whole,
    parse_safetensors,
    read_content,
    weights_path,
)
from aa_flax.weights.fit import (
    check_named,
    fit,
    named_weights,
    num_classes_of,
    options_of,
    set_weights,
)

Model = TypeVar("Model", bound=Classifier)


def save_weights(model: nnx.Module, path: str | Path, **metadata: str) -> None:
    """Writes a model's parameters and batch statistics, atomically; equal ones give equal bytes.

    Args:
        path: the `.safetensors` file.
        metadata: further facts to store, e.g. `source`, `sha256`, `licence`; the model's name,
            options, number of classes and what its `config` says of images always are.
            `read_weights` gives them back.

    Raises:
        InputError: an option is a function without a name to store it by, such as a lambda; a net
            of `aa_flax.fuse`; or a path that cannot be written.
    """
    refuse_folded(model, to="save")
    path = local_path(path, "weights file")
    arrays = {
        name: np.asarray(variable[...], order="C")
        for name, variable in named_weights(model).items()
    }
    if isinstance(model, Classifier) and model.name:
        check_named(str(path), options := options_of(model))
        images = {name: getattr(model.config, name) for name in IMAGE_FIELDS}
        facts = {"model": model.name, "options": json.dumps(options, sort_keys=True)}
        facts["images"] = json.dumps(images)
        metadata = {**facts, "num_classes": str(num_classes_of(model)), **metadata}
    try:
        with replacing(path) as temporary:
            save_file(arrays, temporary, {"format": "aa_flax", **metadata})
            _sort_header(temporary)
    except (OSError, safetensors.SafetensorError, TypeError, UnicodeError) as error:
        raise not_written(path, error) from error


def _sort_header(path: Path) -> None:
    """Rewrites the header with its keys sorted: safetensors writes metadata in a random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(size))
        # As compact as safetensors writes it, so that it has the same length.
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        data = text.encode().ljust(size)
        assert len(data) == size
        file.seek(8)
        file.write(data)


def load_weights(model: Model, path: str | Path) -> Model:
    """Fills a model from a weights file, strictly, in place.

    Args:
        path: safetensors, of this package or with torch's names, or a torch file (needs torch; read
            with `weights_only=True`, so code in it is refused), of any suffix. `FILE#ema` takes the
            averaged weights in it.

    Returns:
        The same model.

    Raises:
        InputError: an unreadable file, weights of another net or of other options, or names or
            shapes that do not fit; nothing is changed then.
    """
    set_weights(model, fit(model, read_content(path)))
    return model


def load_torch_state_dict(model: Model, source: str | Path | Mapping[str, Any]) -> Model:
    """Fills a model with the weights of a torch file or state dict, strictly, in place.

    Takes released files, torchvision's, and training checkpoints, in memory or on disk: wrapped
    (`state_dict`, `model` ...), under prefixes (`module.`, `_orig_mod.`, one that all names have),
    with old DenseNet names, Parameters or tensors on any device, floats of any width. Every tensor
    is used, but `num_batches_tracked` and the fixed filters, which are compared with the model's.

    Args:
        model: a net of `create_model`.
        source: a file as `load_weights` takes it, or a state dict of tensors or arrays.

    Returns:
        The same model.

    Raises:
        InputError: an unreadable file, no state dict or several, or keys, shapes or filters that do
            not fit; nothing is changed then.
    """
    if isinstance(source, str | Path):
        return load_weights(model, source)
    if not isinstance(source, Mapping):
        raise InputError(
            "weights are a file or a state dict, as a torch net's state_dict() gives it; got a "
            f"{type(source).__name__}"
        )
    set_weights(model, fit(model, content_of(source, "the given mapping")))
    return model


def read_weights(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays in a safetensors file by name, and its metadata.

    Raises:
        InputError: no such file, or not a whole safetensors file.
    """
    path, _ = weights_path(path)
    if not is_safetensors(path):
        raise InputError(f"{path} is not a safetensors file")
    return parse_safetensors(path.read_bytes(), path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, read without its arrays.

    Raises:
        InputError: no such file, or not a whole safetensors file.
    """
    path, _ = weights_path(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise not_whole(path, error) from error
