"""Weights as safetensors: one file, no code in it, its metadata naming net, source and licence."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from safetensors.numpy import save_file

from aa_flax.disk import replacing
from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.weights.checks import check_names_and_shapes
from aa_flax.weights.torch_format import Model, load_torch_state_dict

_WEIGHTS = (nnx.Param, nnx.BatchStat)


def save_weights(model: nnx.Module, path: str | Path, **metadata: str) -> None:
    """Writes a model's parameters and batch statistics, atomically.

    Args:
        path: the `.safetensors` file.
        metadata: further facts to store, e.g. `source`, `sha256`, `licence`; the model's name
            always is. `read_weights` gives them back.
    """
    arrays = {
        name: np.ascontiguousarray(variable[...]) for name, variable in named_weights(model).items()
    }
    if isinstance(model, Classifier) and model.name:
        metadata = {"model": model.name, **metadata}
    with replacing(Path(path)) as temporary:
        save_file(arrays, temporary, {"format": "aa_flax", **metadata})


def load_weights(model: Model, path: str | Path) -> Model:
    """Fills a model from a `.safetensors` file or a torch file, strictly, in place.

    Returns:
        The same model.

    Raises:
        InputError: an unreadable file, weights of another net, or names or shapes that do not fit;
            nothing is changed then.
    """
    if not is_safetensors(path):
        return load_torch_state_dict(model, path)
    arrays, metadata = read_weights(path)
    check_model_name(path, metadata.get("model"), model)
    fill(model, arrays)
    return model


def is_safetensors(path: str | Path) -> bool:
    """Whether a file is one of ours, by its name; any other is taken for torch's."""
    return Path(path).suffix == ".safetensors"


def read_weights(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays in a safetensors file by name, and its metadata.

    Raises:
        InputError: no such file, or not a whole safetensors file.
    """
    with _opened(path) as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, file.metadata() or {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, read without its arrays; errors as `read_weights`."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not Path(path).is_file():
        raise InputError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); copy or convert it again"
        ) from error


def check_model_name(path: str | Path, name: str | None, model: nnx.Module) -> None:
    """Raises an InputError if the file at `path` says that it is of another net than `model`."""
    own = getattr(model, "name", "")
    if name and own and name != own:
        raise InputError(
            f"{path} holds weights of {name}, not of {own}; create that model (to start {own} "
            f"from them: nnx.update(model, nnx.state(other)))"
        )


def fill(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets every parameter and batch statistic from an array, by name.

    Raises:
        InputError: names or shapes that do not fit; nothing is changed then.
    """
    variables = named_weights(model)
    check_names_and_shapes(
        {name: tuple(variable.shape) for name, variable in variables.items()},
        {name: tuple(array.shape) for name, array in arrays.items()},
    )
    for name, variable in variables.items():
        variable.set_value(jnp.asarray(arrays[name], variable.dtype))


def named_weights(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The variables that make up a model's weights, by path, e.g. `layer1.0.conv1.kernel`."""
    return {
        ".".join(map(str, path)): variable
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(*_WEIGHTS)))
    }
