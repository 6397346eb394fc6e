"""Files of PyTorch weights to safetensors and back."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from aa_flax.errors import InputError
from aa_flax.files import check_writable, local_path
from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import ReleasedWeights
from aa_flax.weights.building import Held, filled, hold
from aa_flax.weights.content import Content, read_content, weights_path
from aa_flax.weights.files import save_weights
from aa_flax.weights.fit import named_weights
from aa_flax.weights.torch_files import write_torch_file
from aa_flax.weights.torch_format import to_torch_state_dict

_ORIGINALS_LICENCE = "CC BY-NC-SA 4.0 (weights of antialiased-cnns, Zhang 2019)"
_TORCHVISIONS_LICENCE = "BSD 3-Clause (weights of torchvision)"


def convert_torch_file(
    source: str | Path, output: str | Path, model: str | None = None, **options: Any
) -> str:
    """Writes the weights of a torch file, or of safetensors with torch's names, as safetensors.

    Args:
        source: a released file, one of torchvision's, or a training checkpoint; `FILE#ema` takes
            the averaged weights in it.
        output: the `.safetensors` file, written atomically.
        model: the net's name; default: what the file's name or the checkpoint says.
        options: further arguments of the net's class, e.g. `pool_only=False`.

    Returns:
        The net's name.

    Raises:
        InputError: an unreadable file, one whose net is not known, a released file whose hash is
            another, weights that do not fit the net, or an output that cannot be written.
    """
    output = check_output(output, to_torch=False, source=source)
    content = read_content(source)
    if content.ours:
        raise InputError(
            f"{source} is a file of this package already, of {content.metadata.get('model')}; to "
            "write a torch file from it give --to-torch"
        )
    released = released_file(Path(source).name)
    if released is not None:
        check_hash(released, content.sha256, source)
    net = net_of(hold(content, name_of(content, model, source), options), **options)
    if released is not None and num_parameters(net) != released.parameters:
        raise InputError(
            f"{source} has {num_parameters(net)} parameters, {released.parameters} were published"
        )
    save_weights(net, output, **_provenance(content, released, source))
    return net.name


def write_as_torch(
    source: str | Path, output: str | Path, model: str | None = None, **options: Any
) -> str:
    """Writes a weights file as a torch file that the original, or torchvision, loads strictly.

    Args:
        source: the weights file; one of torch's is written anew without what wraps its weights.
        output: the torch file, written atomically: for an antialiased net `{"state_dict": ...}`, as
            the original's files; for a baseline the bare state dict, as torchvision's.
        model: the net's name; default: what the file says.
        options: further arguments of the net's class, where the file does not say them.

    Returns:
        The net's name.

    Raises:
        InputError: an unreadable file, one whose net is not known, names or shapes that do not
            fit, or an output that cannot be written.
    """
    output = check_output(output, to_torch=True, source=source)
    content = read_content(source)
    name = name_of(content, model, source)
    held = hold(content, name, options)
    if held.model != name:
        raise InputError(f"{source} holds weights of {held.model}, not of {name}")
    net = net_of(held, **options)
    save_as_torch(net, output)
    return net.name


def check_output(output: str | Path, *, to_torch: bool, source: str | Path | None = None) -> Path:
    """The file to write, if it can be one of that kind.

    Args:
        source: the file that is converted, which has to stay.

    Raises:
        InputError: the source, a folder, a device, a suffix that says the other kind, or a place
            that cannot be written.
    """
    path = local_path(output, "the output")
    check_writable(path)
    if source is not None and path.exists() and path.samefile(weights_path(source)[0]):
        raise InputError(f"the output {path} is the source itself; give another name")
    if to_torch and path.suffix == ".safetensors":
        raise InputError(f"the output {path} is to be a torch file; call it e.g. .pth")
    if not to_torch and path.suffix != ".safetensors":
        raise InputError(
            f"the output {path} is to be safetensors; call it .safetensors, or give --to-torch to "
            "write a torch file"
        )
    return path


def save_as_torch(model: Classifier, output: Path) -> None:
    """Writes a net's weights as `write_as_torch` does.

    Raises:
        InputError: the output cannot be written.
    """
    state_dict = to_torch_state_dict(model)
    antialiased = model.filter_size is not None
    write_torch_file({"state_dict": state_dict} if antialiased else state_dict, output)


def net_of(held: Held, **options: Any) -> Classifier:
    """The net with these weights, shapes alone besides; without a last layer if they have none.

    Args:
        options: the net's; those the weights say are added.
    """
    options = {**(held.options or {}), **options}

    def build(num_classes: int, rngs: nnx.Rngs) -> Classifier:
        return registry.build(held.model, num_classes=num_classes, rngs=rngs, **options)

    net = filled(held, build, 0 if held.num_classes is None else held.num_classes, trunk_only=True)
    _check_whole(net, held)
    return net


def _check_whole(net: Classifier, held: Held) -> None:
    """A net without its last layer can still need layers that a trunk does not have."""
    missing = [name for name in named_weights(net) if name not in held.arrays]
    if missing:
        raise InputError(
            f"{held.label} holds the trunk of {held.model} alone, and a file of the net has "
            f"{', '.join(missing)}, too; the trunk needs no conversion: "
            f"aa_flax.create_model({held.model!r}, pretrained=FILE, features_only=True) reads it"
        )


def num_parameters(model: nnx.Module) -> int:
    """Trained values of a net, batch statistics not counted."""
    return sum(int(np.prod(p.shape)) for _, p in nnx.to_flat_state(nnx.state(model, nnx.Param)))


def released_file(filename: str) -> ReleasedWeights | None:
    """The released file of this name, if it is one."""
    return next((r for r in registry.released_weights() if r.filename == filename), None)


def check_hash(released: ReleasedWeights, digest: str, path: str | Path) -> None:
    """Raises an InputError if a file is not the released one it is named after."""
    if not digest.startswith(released.sha256_prefix):
        raise InputError(
            f"{path} is damaged or not the released file: its SHA-256 begins with "
            f"{digest[:8]}, not {released.sha256_prefix}; delete it and download it again"
        )


def licence_of(released: ReleasedWeights) -> str:
    """The licence that released weights are under."""
    return _TORCHVISIONS_LICENCE if released.training == "baseline" else _ORIGINALS_LICENCE


def _provenance(
    content: Content, released: ReleasedWeights | None, source: str | Path
) -> dict[str, str]:
    facts = {"source": Path(source).name, "sha256": content.sha256}
    if released is not None:
        facts |= {"training": released.training, "licence": licence_of(released)}
    return facts


def name_of(content: Content, model: str | None, source: str | Path) -> str:
    """A net's name, as given, or from the table, a checkpoint, metadata, or the file's name.

    Raises:
        InputError: none of them says it.
    """
    if model is not None:
        return model
    filename = Path(source).name
    if (released := released_file(filename)) is not None:
        return released.model
    if "model" in content.metadata:
        return content.metadata["model"]
    if isinstance(content.checkpoint, Mapping) and isinstance(content.checkpoint.get("arch"), str):
        return content.checkpoint["arch"]
    for name in sorted(registry.list_models(), key=len, reverse=True):
        if re.match(re.escape(name) + r"(?![a-z0-9]|_lpf|_bn)", filename):
            return name
    raise InputError(
        f"{source} does not say which net it is of; give --model NAME, e.g. resnet50_lpf4"
    )
