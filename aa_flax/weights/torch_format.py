"""PyTorch state dicts to Flax and back: one walk over a net in torch's order serves both ways.

A net's `torch_layers` lists its layers under the names they have in a torch file. What a layer
holds, and how torch lays it out, follows from its type alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.errors import InputError
from aa_flax.layers import BatchNorm
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import parse_name
from aa_flax.models.torch_layout import Filter, Flattened
from aa_flax.ops.blur import binomial_taps
from aa_flax.weights.checks import check_names_and_shapes
from aa_flax.weights.torch_files import read_torch_file, todays_name

Model = TypeVar("Model", bound=Classifier)


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


def torch_slots(model: Classifier) -> dict[str, Slot]:
    """Every variable of the model under its torch name, in torch's order."""
    slots = {}
    for name, layer in model.torch_layers():
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


def to_torch_state_dict(model: Classifier) -> dict[str, np.ndarray]:
    """The model's weights as the torch original names, orders and lays them out.

    Returns:
        Arrays by name: what `torch_model.load_state_dict(..., strict=True)` expects once each is
        made a tensor; filters and `num_batches_tracked` (0) included.
    """
    slots = torch_slots(model)
    state = {}
    for name, layer in model.torch_layers():
        if isinstance(layer, Filter):
            state[f"{name}.filt"] = _filter(layer)
            continue
        state |= {key: slots[key].as_torch() for key in slots if key.rpartition(".")[0] == name}
        if isinstance(layer, BatchNorm):
            state[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
    return state


def load_torch_state_dict(model: Model, source: str | Path | Mapping[str, Any]) -> Model:
    """Fills a model with the weights of a torch file or state dict, strictly, in place.

    Reads released files, torchvision's, and training checkpoints (`module.` in names, old DenseNet
    names). Every tensor is used, but `num_batches_tracked` and the fixed filters, which are
    compared with the model's own.

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
    given = {todays_name(name): np.asarray(value) for name, value in source.items()}
    _check_filters(model, given)
    given = {k: v for k, v in given.items() if k.rpartition(".")[2] not in _DROPPED}
    slots = torch_slots(model)
    check_names_and_shapes(
        {name: slot.torch_shape for name, slot in slots.items()},
        {name: array.shape for name, array in given.items()},
    )
    for name, slot in slots.items():
        # A copy: JAX may otherwise share the memory of a tensor that torch goes on changing.
        array = jnp.array(slot.from_torch(given[name]), slot.variable.dtype, copy=True)
        slot.variable.set_value(array)
    return model


# What a state dict holds beyond weights and statistics: a counter that nothing reads, and filters.
_DROPPED = ("num_batches_tracked", "filt")


def _check_filters(model: Classifier, given: Mapping[str, np.ndarray]) -> None:
    """The fixed filters in a file say which filter size its weights were trained with."""
    expected = {
        f"{name}.filt": layer for name, layer in model.torch_layers() if isinstance(layer, Filter)
    }
    found = {value.shape[-1] for name, value in given.items() if name.endswith(".filt")}
    own = {layer.filter_size for layer in expected.values()}
    if found != own:
        name = getattr(model, "name", "")
        raise InputError(
            f"these weights are for {_net_with(found, name)}, the model is {_net_with(own, name)}; "
            "create the model that fits the weights (nnx.update then copies them into another "
            "filter size)"
        )
    for name, layer in expected.items():
        if name in given and not np.allclose(given[name], _filter(layer), rtol=1e-6, atol=0):
            raise InputError(f"{name} is not a binomial filter; these weights are of another net")


def _net_with(filter_sizes: set[int], name: str) -> str:
    """Names the variant of the net `name` that has these filter sizes."""
    base = parse_name(name)[0] if name else "the net"
    if not filter_sizes:
        return f"{base} (a baseline, without filters)"
    return " and ".join(f"{base}_lpf{k} (filter size {k})" for k in sorted(filter_sizes))
