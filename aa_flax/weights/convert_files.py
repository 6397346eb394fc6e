"""Converts weights files between PyTorch's and safetensors, one or a folder of released ones."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from aa_flax.errors import InputError
from aa_flax.files import check_writable, local_path
from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import ReleasedWeights
from aa_flax.runtime import progress_bar
from aa_flax.weights.building import filled, fitted
from aa_flax.weights.fit import named_weights
from aa_flax.weights.read import Weights, read_metadata, read_weights, weights_path
from aa_flax.weights.save_load import save_weights, write_torch_file
from aa_flax.weights.state_dicts import to_torch_state_dict

_ORIGINALS_LICENCE = "CC BY-NC-SA 4.0 (weights of antialiased-cnns, Zhang 2019)"
_TORCHVISIONS_LICENCE = "BSD 3-Clause (weights of torchvision)"


def convert_file(
    source: str | Path,
    output: str | Path,
    model: str | None = None,
    *,
    to_torch: bool = False,
    **options: Any,
) -> str:
    """Writes the weights of a torch file as safetensors, or those of any file as a torch file.

    Args:
        source: a weights file of any kind; `FILE#ema` converts the averaged weights in it.
        output: the file to write, atomically. A torch file is one that the original, or
            torchvision, loads strictly: `{"state_dict": ...}` for an antialiased model, as the
            original's files; the bare state dict for a baseline, as torchvision's.
        model: the model's name; default: inferred from the file's name or content.
        options: further arguments of the model's class, where the file does not say them.

    Returns:
        The model's name.

    Raises:
        InputError: an unreadable file, an unknown model, a released file with another hash, weights
            that do not fit the model, or an output that cannot be written.
    """
    output = check_output(output, to_torch=to_torch, source=source)
    weights = read_weights(source)
    if not to_torch and not weights.torch_names:
        raise InputError(
            f"{source} is a file of this package already, of {weights.model or 'no model'}; to "
            "write a torch file from it give --to-torch"
        )
    facts = {"source": Path(source).name, "sha256": weights.sha256}
    released = None if to_torch else released_file(Path(source).name)
    if released is not None:
        check_hash(released, weights.sha256, source)
        facts |= {"training": released.training, "licence": licence_of(released)}
    name = name_of(weights, model, source)
    if weights.model not in ("", name):
        raise InputError(f"{source} has weights of {weights.model}, not of {name}")
    whole = whole_model(fitted(weights, name, options), **options)
    if released is not None and num_parameters(whole) != released.parameters:
        raise InputError(
            f"{source} has {num_parameters(whole)} parameters, {released.parameters} were published"
        )
    if to_torch:
        save_as_torch(whole, output)
    else:
        save_weights(whole, output, **facts)
    return whole.name


def check_output(output: str | Path, *, to_torch: bool, source: str | Path | None = None) -> Path:
    """Checks a file to write, its suffix too, and that it is not `source`; returns its path.

    Raises:
        InputError: it cannot be written, has the wrong suffix, or is `source` itself.
    """
    path = local_path(output, "the output")
    check_writable(path)
    if source is not None and path.exists() and path.samefile(weights_path(source)[0]):
        raise InputError(f"the output {path} is the source itself; give another name")
    if to_torch and path.suffix == ".safetensors":
        raise InputError(f"the output {path} must be a torch file; name it e.g. .pth")
    if not to_torch and path.suffix != ".safetensors":
        raise InputError(
            f"the output {path} must be safetensors; name it .safetensors, or give --to-torch to "
            "write a torch file"
        )
    return path


def save_as_torch(model: Classifier, output: Path) -> None:
    """Writes a model's weights as a torch file; see `convert_file`."""
    state = to_torch_state_dict(model)
    write_torch_file(state if model.filter_size is None else {"state_dict": state}, output)


def whole_model(weights: Weights, **options: Any) -> Classifier:
    """Builds the model with these weights, all else abstract; without a last layer if they lack it.

    A trunk alone is an InputError if the model has more layers before the last one, as VGG does.

    Raises:
        InputError: the weights are a trunk, and the model has other layers before the last one, as
            VGG does.
    """
    build = partial(registry.build, weights.model, **{**(weights.options or {}), **options})
    model = filled(weights, build, weights.num_classes or 0, trunk_only=True)
    if missing := [name for name in named_weights(model) if name not in weights.arrays]:
        raise InputError(
            f"{weights.label} contains the trunk of {weights.model} alone, and a file of the model "
            f"has {', '.join(missing)}, too; the trunk needs no conversion: "
            f"aa_flax.create_model({weights.model!r}, pretrained=FILE, features_only=True) reads it"
        )
    return model


def num_parameters(model: nnx.Module) -> int:
    """Returns the number of a model's trained values, without batch statistics."""
    return sum(int(np.prod(p.shape)) for _, p in nnx.to_flat_state(nnx.state(model, nnx.Param)))


def name_of(weights: Weights, model: str | None, source: str | Path) -> str:
    """Returns a model's name as given, or as a file's name, metadata or checkpoint say it.

    Raises:
        InputError: none of them says it.
    """
    if model is not None:
        return model
    filename = Path(source).name
    if (released := released_file(filename)) is not None:
        return released.model
    if "model" in weights.metadata:
        return weights.metadata["model"]
    if isinstance(weights.checkpoint, Mapping) and isinstance(weights.checkpoint.get("arch"), str):
        return weights.checkpoint["arch"]
    for name in sorted(registry.list_models(), key=len, reverse=True):
        if re.match(re.escape(name) + r"(?![a-z0-9]|_lpf|_bn)", filename):
            return name
    raise InputError(
        f"{source} does not say which model it is of; give --model NAME, e.g. resnet50_lpf4"
    )


def released_file(filename: str) -> ReleasedWeights | None:
    """Returns the released file of this name, if there is one."""
    return next((r for r in registry.released_weights() if r.filename == filename), None)


def check_hash(released: ReleasedWeights, digest: str, path: str | Path) -> None:
    """Raises an InputError if a file is not the released one it is named after."""
    if not digest.startswith(released.sha256_prefix):
        raise InputError(
            f"{path} is damaged or not the released file: its SHA-256 begins with "
            f"{digest[:8]}, not {released.sha256_prefix}; delete it and download it again"
        )


def licence_of(released: ReleasedWeights) -> str:
    """Returns the licence of released weights, with whom it is from."""
    return _TORCHVISIONS_LICENCE if released.training == "baseline" else _ORIGINALS_LICENCE


def convert_folder(folder: str | Path, output: str | Path) -> tuple[str, int]:
    """Converts every released file in a folder; those converted earlier are skipped.

    Args:
        folder: the downloaded files, by their published names, torchvision's baselines included.
        output: where `resnet50_lpf4-994b528f.safetensors` and the like are written.

    Returns:
        A table of the files, and the number that failed, which does not stop the others.

    Raises:
        InputError: no such folder, or no released file in it.
    """
    folder, output = local_path(folder, "the folder"), local_path(output, "the output")
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    table = registry.released_weights()
    found = [released for released in table if (folder / released.filename).is_file()]
    if not found:
        raise InputError(
            f"no released file in {folder}; their names are like {table[-1].filename}, and "
            "docs/weights.md lists them"
        )
    if output.exists() and not output.is_dir():
        raise InputError(f"the output {output} is a file; with --all it must be a folder")
    width = max(len(released.filename) for released in found)
    lines, failed = [f"{'file':{width}}  {'parameters':>11}  status"], 0
    for released in progress_bar(len(found), "converting", "file", iterable=found):
        target = (output / released.filename).with_suffix(".safetensors")
        try:
            status = _converted(released, folder / released.filename, target)
        except InputError as error:
            status, failed = str(error), failed + 1
        lines.append(f"{released.filename:{width}}  {released.parameters:>11,}  {status}")
    lines.append(
        f"{len(found) - failed} of {len(table)} files are converted, {failed} failed, "
        f"{len(table) - len(found)} are not in the folder"
    )
    return "\n".join(lines), failed


def _converted(released: ReleasedWeights, source: Path, target: Path) -> str:
    try:
        if read_metadata(target).get("sha256", "").startswith(released.sha256_prefix):
            return "already done"
    except InputError:  # no file yet, or an incomplete one
        pass
    convert_file(source, target)
    return "converted"
