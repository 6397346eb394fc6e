"""PyTorch state dicts to Flax and back: one walk over a net in torch's order serves both ways.

A net's `torch_layers` lists its layers under the names they have in a torch file. What a layer
holds, and how torch lays it out, follows from its type alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax import nnx

from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.torch_layout import Filter, Flattened
from aa_flax.nn.layers import BatchNorm, refuse_folded
from aa_flax.ops.blur import binomial_taps


class Slot(NamedTuple):
    """A variable of the model, and the axis orders that take its array to torch and back.

    `view` is the variable's shape with its flattened axes apart, where torch flattens them in
    another order.
    """

    variable: nnx.Variable
    to_torch: tuple[int, ...]
    view: tuple[int, ...] | None = None

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """torch's array as the variable has it; a last layer's may have other classes."""
        if self.view is not None:
            array = array.reshape(-1, *(self.view[i] for i in self.to_torch[1:]))
        array = np.ascontiguousarray(array.transpose(np.argsort(self.to_torch)))
        return array if self.view is None else array.reshape(-1, array.shape[-1])

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
    refuse_folded(model, to="convert")
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


def torch_filters(model: Classifier) -> dict[str, np.ndarray]:
    """The fixed filters that stand in a torch file beside the weights, by name."""
    layers = model.torch_layers()
    return {f"{name}.filt": _filter(layer) for name, layer in layers if isinstance(layer, Filter)}


def torch_counters(model: Classifier) -> list[str]:
    """Names of the counters that torch keeps in its files and that nothing here reads."""
    return [
        f"{name}.num_batches_tracked"
        for name, layer in model.torch_layers()
        if isinstance(layer, BatchNorm)
    ]


def check_filters(expected: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> None:
    """Raises an InputError if filters of the right shapes have other values than a net's own."""
    for name, taps in expected.items():
        if not np.allclose(given[name], taps, rtol=1e-6, atol=0):
            raise InputError(
                f"{name} is not the model's filter (binomial, for a BlurPool); these weights are "
                "of another net"
            )


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
