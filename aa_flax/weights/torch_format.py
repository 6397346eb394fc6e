"""PyTorch state dicts to Flax and back: one walk over a net in torch's order serves both ways.

`torch_layout` lists a net's layers under the names they have in a torch file. What a layer holds,
and how torch lays it out, follows from its type alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from aa_flax.blurpool import binomial_taps
from aa_flax.errors import InputError
from aa_flax.layers import BatchNorm
from aa_flax.weights.torch_layout import Filter, Flattened, torch_layers


class Slot(NamedTuple):
    """A variable of the model, and the axis orders that take its array to torch and back.

    `view` is the variable's shape with its flattened axes apart, where torch flattens them in
    another order.
    """

    variable: nnx.Variable
    to_torch: tuple[int, ...]
    view: tuple[int, ...] | None = None

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        shape = self.view or self.variable.shape
        array = array.reshape([shape[i] for i in self.to_torch])
        array = array.transpose(np.argsort(self.to_torch))
        return np.ascontiguousarray(array).reshape(self.variable.shape)

    def as_torch(self) -> np.ndarray:
        array = np.asarray(self.variable[...]).reshape(self.view or self.variable.shape)
        return np.ascontiguousarray(array.transpose(self.to_torch)).reshape(self.torch_shape)

    @property
    def torch_shape(self) -> tuple[int, ...]:
        order = self.to_torch if self.view is None else _KERNEL_ORDER[nnx.Linear]
        return tuple(self.variable.shape[i] for i in order)


_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_KERNEL_ORDER = {nnx.Conv: (3, 2, 0, 1), nnx.Linear: (1, 0)}  # HWIO -> OIHW, IO -> OI


def _slots(model: nnx.Module) -> dict[str, Slot]:
    """Every variable of the model under its torch name, in torch's order."""
    slots = {}
    for name, layer in torch_layers(model):
        if isinstance(layer, BatchNorm):
            for torch_leaf, leaf in _BATCH_NORM.items():
                slots[f"{name}.{torch_leaf}"] = Slot(getattr(layer, leaf), (0,))
        elif not isinstance(layer, Filter):
            view = None
            if isinstance(layer, Flattened):
                layer, height, width = layer
                view = (height, width, layer.in_features // (height * width), layer.out_features)
            order = _KERNEL_ORDER[nnx.Conv if view else type(layer)]
            slots[f"{name}.weight"] = Slot(layer.kernel, order, view)
            if layer.bias is not None:
                slots[f"{name}.bias"] = Slot(layer.bias, (0,))
    return slots


def _filter(layer: Filter) -> np.ndarray:
    taps = binomial_taps(layer.filter_size)
    kernel = np.outer(taps, taps).astype(np.float32)
    return np.tile(kernel, (layer.channels, 1, 1, 1))


def to_torch_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's weights as the torch original names, orders and lays them out.

    Returns:
        Arrays by name: what `torch_model.load_state_dict(..., strict=True)` expects once each is
        made a tensor; filters and `num_batches_tracked` (0) included.
    """
    slots = _slots(model)
    state = {}
    for name, layer in torch_layers(model):
        if isinstance(layer, Filter):
            state[f"{name}.filt"] = _filter(layer)
            continue
        state |= {key: slots[key].as_torch() for key in slots if key.rpartition(".")[0] == name}
        if isinstance(layer, BatchNorm):
            state[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
    return state


def load_torch_state_dict(model: nnx.Module, source: str | Path | Mapping[str, Any]) -> nnx.Module:
    """Fills a model with the weights of a torch file or state dict, strictly, in place.

    Args:
        model: a net of `create_model`.
        source: a `.pth` file (needs torch; read with `weights_only=True`, so code in it is refused)
            or a state dict of tensors or arrays.

    Returns:
        The same model.

    Raises:
        InputError: an unreadable file, or keys, shapes or filters that do not fit; nothing is
            changed then.
    """
    if isinstance(source, str | Path):
        source = read_torch_file(source)
    given = {name: np.asarray(value) for name, value in source.items()}
    _check_filters(model, given)
    dropped = ("num_batches_tracked", "filt")
    given = {k: v for k, v in given.items() if k.rpartition(".")[2] not in dropped}
    slots = _slots(model)
    _check_names_and_shapes(slots, given)
    for name, slot in slots.items():
        slot.variable[...] = slot.from_torch(given[name]).astype(slot.variable.dtype)
    return model


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a torch file, as arrays.

    Raises:
        InputError: no such file, not a torch file or a damaged one, or one that carries code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        import torch
    except ImportError as error:
        raise InputError(f"reading {path} needs torch: pip install 'aa_flax[torch]'") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(
            f"{path} cannot be read as torch weights: it is damaged, or holds more than tensors "
            f"(nothing in it was run). torch says: {str(error).splitlines()[0]}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(hasattr(v, "numpy") for v in content.values()):
        raise InputError(f"{path} holds no state dict (a mapping of names to tensors)")
    return {name: tensor.numpy() for name, tensor in content.items()}


def _check_filters(model: nnx.Module, given: Mapping[str, np.ndarray]) -> None:
    """The fixed filters in a file say which filter size its weights were trained with."""
    found = {value.shape[-1] for name, value in given.items() if name.endswith(".filt")}
    expected = {
        f"{name}.filt": layer for name, layer in torch_layers(model) if isinstance(layer, Filter)
    }
    own = {layer.filter_size for layer in expected.values()}
    if found != own:
        fits = " and ".join(f"filter size {k} (..._lpf{k})" for k in sorted(found))
        raise InputError(
            f"these weights are for {fits or 'a baseline net (no filters)'}, but the model "
            f"{'has filter size ' + str(min(own)) if own else 'is a baseline net'}; create the "
            "model that fits the weights (then nnx.update copies them into another filter size)"
        )
    for name, layer in expected.items():
        if name in given and not np.allclose(given[name], _filter(layer), rtol=1e-6, atol=0):
            raise InputError(f"{name} is not a binomial filter; these weights are of another net")


def _check_names_and_shapes(slots: Mapping[str, Slot], given: Mapping[str, np.ndarray]) -> None:
    problems = []
    if missing := sorted(slots.keys() - given.keys()):
        problems.append(f"missing in the weights: {_some(missing)}")
    if unknown := sorted(given.keys() - slots.keys()):
        problems.append(f"not in the model: {_some(unknown)}")
    shapes = [
        f"{name} {given[name].shape}, the model has {slot.torch_shape}"
        for name, slot in slots.items()
        if name in given and given[name].shape != slot.torch_shape
    ]
    if shapes:
        problems.append(f"other shapes: {_some(shapes)}")
    if problems:
        raise InputError("the weights do not fit the model; " + "; ".join(problems))


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
