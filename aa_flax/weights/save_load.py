"""Saves and loads weights: safetensors, whose metadata name the model, and torch files."""

import json
import re
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
from aa_flax.weights.fit import fit, named_weights, options_of, set_weights
from aa_flax.weights.read import import_torch, read_weights, weights_in

Model = TypeVar("Model", bound=Classifier)


def save_weights(model: nnx.Module, path: str | Path, **metadata: str) -> None:
    """Writes a model's parameters and batch statistics, atomically; equal ones give equal bytes.

    Args:
        path: the `.safetensors` file.
        metadata: further facts to store, e.g. `source`, `sha256`, `licence`; the model's name,
            options, number of classes and the images that its `config` describes always are.

    Raises:
        InputError: an option is a function without a name to store it by, such as a lambda; a model
            of `aa_flax.fuse`; or a path that cannot be written.

    Examples:
        >>> import aa_flax
        >>> model = aa_flax.create_model("resnet18_lpf4", num_classes=10)
        >>> aa_flax.save_weights(model, "mine.safetensors", licence="CC0")
        >>> model = aa_flax.create_model("resnet18_lpf4", pretrained="mine.safetensors")
        >>> model.num_classes, model.config.licence
        (10, 'CC0')
    """
    refuse_folded(model, to="save")
    path = local_path(path, "weights file")
    arrays = {
        name: np.asarray(variable[...], order="C")
        for name, variable in named_weights(model).items()
    }
    if isinstance(model, Classifier) and model.name:
        _check_named(path, options := options_of(model))
        facts = {
            "model": model.name,
            "options": json.dumps(options, sort_keys=True),
            "images": json.dumps({name: getattr(model.config, name) for name in IMAGE_FIELDS}),
            "num_classes": str(model.num_classes or 0),
        }
        metadata = {**facts, **metadata}
    try:
        with replacing(path) as temporary:
            save_file(arrays, temporary, {"format": "aa_flax", **metadata})
            _sort_header(temporary)
    except (OSError, safetensors.SafetensorError, TypeError, UnicodeError) as error:
        raise not_written(path, error) from error


def _check_named(path: Path, options: Mapping[str, Any]) -> None:
    """Refuses an option that is a function whose name others have, too."""
    for option, value in options.items():
        if re.search(r"<lambda>|<locals>| at 0x[0-9a-f]+", json.dumps(value)):
            raise InputError(
                f"{path}: {option}={value!r} is a function without a unique name, so models with "
                "several such cannot be distinguished; register a pool (aa_flax.register_pool) and "
                "give its name, or define the function at the top of a module"
            )


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
    """Fills a model from a weights file, strictly, in place; returns it.

    Args:
        path: safetensors, of this package or with torch's names, or a torch file (needs torch; read
            with `weights_only=True`, so code in it is refused), with any suffix. `FILE#ema` loads
            the averaged weights in it.

    Raises:
        InputError: an unreadable file, weights of another model or of other options, or names or
            shapes that do not fit; nothing is changed then.

    Examples:
        >>> import aa_flax
        >>> trained, fresh = (aa_flax.create_model("resnet18_lpf4") for _ in range(2))
        >>> aa_flax.save_weights(trained, "mine.safetensors")
        >>> aa_flax.load_weights(fresh, "mine.safetensors") is fresh
        True
    """
    set_weights(model, fit(model, read_weights(path)))
    return model


def load_torch_state_dict(model: Model, source: str | Path | Mapping[str, Any]) -> Model:
    """Fills a model with the weights of a torch file or state dict, strictly, in place; returns it.

    Accepts released files, torchvision's, and training checkpoints, in memory or on disk: wrapped
    (`state_dict`, `model` ...), under prefixes (`module.`, `_orig_mod.`, one that all names have),
    with old DenseNet names, Parameters or tensors on any device, floats of any width. Every tensor
    is used, except `num_batches_tracked` and the fixed filters, which are compared with the
    model's.

    Args:
        model: a model of `create_model`.
        source: a file as `load_weights` takes it, or a state dict of tensors or arrays.

    Raises:
        InputError: an unreadable file, no state dict or several, or keys, shapes or filters that do
            not fit; nothing is changed then.

    Examples:
        >>> import aa_flax
        >>> model = aa_flax.create_model("resnet18_lpf4")
        >>> state_dict = aa_flax.to_torch_state_dict(model)  # or torch_model.state_dict()
        >>> wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state_dict.items()}}
        >>> aa_flax.load_torch_state_dict(model, wrapped) is model
        True
    """
    if isinstance(source, str | Path):
        return load_weights(model, source)
    if not isinstance(source, Mapping):
        raise InputError(
            "weights are a file or a state dict, as a torch model's state_dict() returns it; got a "
            f"{type(source).__name__}"
        )
    set_weights(model, fit(model, weights_in(source, "the given mapping")))
    return model


def write_torch_file(content: Mapping[str, Any], path: Path) -> None:
    """Writes names and arrays, or names and such mappings, as tensors; atomically."""
    torch = import_torch(f"writing {path}")

    def tensors(content: Any) -> Any:
        if isinstance(content, Mapping):
            return {name: tensors(value) for name, value in content.items()}
        return torch.tensor(content)

    converted = tensors(content)
    try:
        # Given a path, torch stores its name in the file and hides why writing failed.
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(converted, file)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise not_written(path, cause) from error
