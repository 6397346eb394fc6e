"""Files of PyTorch weights to safetensors and back."""

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from aa_flax.errors import InputError
from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import ReleasedWeights
from aa_flax.weights.files import (
    check_model_name,
    fill,
    is_safetensors,
    named_weights,
    read_weights,
    save_weights,
)
from aa_flax.weights.torch_files import (
    read_torch_content,
    read_torch_file,
    state_dict_of,
    write_torch_file,
)
from aa_flax.weights.torch_format import load_torch_state_dict, to_torch_state_dict

_ORIGINALS_LICENCE = "CC BY-NC-SA 4.0 (weights of antialiased-cnns, Zhang 2019)"
_TORCHVISIONS_LICENCE = "BSD 3-Clause (weights of torchvision)"


def convert_torch_file(source: str | Path, output: str | Path, model: str | None = None) -> str:
    """Writes the weights of a torch file as safetensors.

    Args:
        source: a released file, one of torchvision's, or a training checkpoint.
        output: the `.safetensors` file, written atomically.
        model: the net's name; default: what the file's name or the checkpoint says.

    Returns:
        The net's name.

    Raises:
        InputError: an unreadable file, one whose net is not known, a released file whose hash is
            another, or weights that do not fit the net.
    """
    source = Path(source)
    content = read_torch_content(source)
    state_dict = state_dict_of(content, source)
    released = released_file(source.name)
    digest = sha256(source)
    if released is not None:
        check_hash(released, digest, source)
    name = model or _name_in(content, released, source)
    net = abstract_net(name, _num_classes(state_dict, source))
    load_torch_state_dict(net, state_dict)
    if released is not None and num_parameters(net) != released.parameters:
        raise InputError(
            f"{source} has {num_parameters(net)} parameters, {released.parameters} were published"
        )
    save_weights(net, output, **_provenance(source.name, digest, released))
    return net.name


def write_as_torch(source: str | Path, output: str | Path, model: str | None = None) -> str:
    """Writes a safetensors file as a torch file that the original, or torchvision, loads strictly.

    Args:
        source: the `.safetensors` file.
        output: the torch file, written atomically: for an antialiased net `{"state_dict": ...}`, as
            the original's files; for a baseline the bare state dict, as torchvision's.
        model: the net's name; default: what the file's metadata says.

    Returns:
        The net's name.

    Raises:
        InputError: an unreadable file, one whose net is not known, or names or shapes that do not
            fit.
    """
    name = model or read_weights(source)[1].get("model")
    if name is None:
        raise InputError(f"{source} does not say which net it is of; give --model NAME")
    net = model_in(source, partial(abstract_net, name))
    save_as_torch(net, output)
    return net.name


def save_as_torch(model: Classifier, output: str | Path) -> None:
    """Writes a net's weights as `write_as_torch` does."""
    state_dict = to_torch_state_dict(model)
    antialiased = model.filter_size is not None
    write_torch_file({"state_dict": state_dict} if antialiased else state_dict, output)


def model_in(path: str | Path, build: Callable[[int], Classifier]) -> Classifier:
    """The net whose weights are in a file, safetensors or torch's.

    Args:
        build: makes the net, of shapes alone or not, for a number of classes: that of the file.

    Raises:
        InputError: an unreadable file, or weights that do not fit the net.
    """
    if is_safetensors(path):
        arrays, metadata = read_weights(path)
        model = build(_num_classes(arrays, path))
        check_model_name(path, metadata.get("model"), model)
        fill(model, arrays)
        return model
    state_dict = read_torch_file(path)
    model = build(_num_classes(state_dict, path))
    load_torch_state_dict(model, state_dict)
    return model


def num_classes_of(model: Classifier) -> int:
    """Outputs of a net's last layer."""
    return _num_classes(named_weights(model), model.name)


def abstract_net(name: str, num_classes: int) -> Classifier:
    """A net of shapes alone, for weights to be put in."""
    return nnx.eval_shape(lambda: registry.build(name, num_classes=num_classes, rngs=nnx.Rngs(0)))


def num_parameters(model: nnx.Module) -> int:
    """Trained values of a net, batch statistics not counted."""
    return sum(int(np.prod(p.shape)) for _, p in nnx.to_flat_state(nnx.state(model, nnx.Param)))


def released_file(filename: str) -> ReleasedWeights | None:
    """The released file of this name, if it is one."""
    return next((r for r in registry.released_weights() if r.filename == filename), None)


def check_hash(released: ReleasedWeights, digest: str, path: Path) -> None:
    """Raises an InputError if a file is not the released one it is named after."""
    if not digest.startswith(released.sha256_prefix):
        raise InputError(
            f"{path} is damaged or not the released file: its SHA-256 begins with "
            f"{digest[:8]}, not {released.sha256_prefix}; delete it and download it again"
        )


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _provenance(filename: str, digest: str, released: ReleasedWeights | None) -> dict[str, str]:
    facts = {"source": filename, "sha256": digest}
    if released is not None:
        baseline = released.training == "baseline"
        facts["training"] = released.training
        facts["licence"] = _TORCHVISIONS_LICENCE if baseline else _ORIGINALS_LICENCE
    return facts


def _name_in(content: Any, released: ReleasedWeights | None, source: Path) -> str:
    """A net's name, from the table, from a training checkpoint, or from the file's name."""
    if released is not None:
        return released.model
    if isinstance(content, Mapping) and isinstance(content.get("arch"), str):
        return content["arch"]
    for name in sorted(registry.list_models(), key=len, reverse=True):
        if re.match(re.escape(name) + r"(?![a-z0-9]|_lpf|_bn)", source.name):
            return name
    raise InputError(
        f"{source} does not say which net it is of; give --model NAME, e.g. resnet50_lpf4"
    )


# The bias of each family's last layer, in our names and in torch's. In AlexNet and VGG
# `classifier.6` is the last, in MobileNetV2 `classifier.1` (plain) or `classifier.0`.
_HEADS = (
    "fc.bias",
    "fc3.bias",
    "classifier.bias",
    "classifier.6.bias",
    "classifier.1.bias",
    "classifier.0.bias",
)


def _num_classes(arrays: Mapping[str, Any], path: str | Path) -> int:
    """Outputs of the last layer of the net whose weights these are."""
    for name in _HEADS:
        if name in arrays:
            return arrays[name].shape[0]
    raise InputError(f"{path} holds no classifier; it is not the weights of one of these nets")
