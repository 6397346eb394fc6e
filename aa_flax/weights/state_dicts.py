"""PyTorch's state dicts: found in a checkpoint, with today's names, and mapped to Flax and back.

`torch_layers` of a model lists its layers under their names in a torch file. The variables of a
layer, and their layout in torch, follow from its type alone; one walk over them serves both ways.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.errors import InputError, first_line
from aa_flax.models.classifier import Classifier
from aa_flax.models.torch_layout import Filter, Flattened
from aa_flax.nn.layers import BatchNorm, refuse_folded
from aa_flax.ops.blur import binomial_taps

T = TypeVar("T")

# Entries of a training checkpoint that are not weights.
_NOT_WEIGHTS = re.compile(
    r"optim|sched|scaler|criterion|loss|args|config|hyper|callbacks|loops|rng", re.IGNORECASE
)
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged)(_|$)", re.IGNORECASE)
_DEPTH = 3  # of nested wrappers


def find_state_dict(
    content: Any, label: object, *, ema: bool = False
) -> tuple[dict[str, Any], str]:
    """Finds the one state dict in a checkpoint, bare or in wrappers of any name.

    Args:
        label: the checkpoint's source, for errors.
        ema: return the averaged weights (`model_ema`, `state_dict_ema`, `ema_model.` ...).

    Returns:
        Tensors by name, as spelled there; and the names of averaged copies that were not chosen.

    Raises:
        InputError: there is none, or more than one; the message says what was found.
    """
    plain: dict[str, Mapping[str, Any]] = {}
    averaged: dict[str, Mapping[str, Any]] = {}
    for path, tensors in _state_dicts(content):
        for name, is_averaged, part in _parts(path, tensors):
            (averaged if is_averaged else plain)[name] = part
    if ema and not averaged:
        raise InputError(f"{label} contains no EMA weights; it is {_summary(content)}")
    chosen = averaged if ema or not plain else plain
    if len(chosen) > 1:  # a run's metrics, for example, have no layers
        layered = {k: v for k, v in chosen.items() if any(n.endswith("weight") for n in v)}
        chosen = layered or chosen
    if len(chosen) > 1:
        raise InputError(
            f"{label} contains several state dicts ({', '.join(chosen)}); give the one that is "
            "meant alone, as a mapping or a file"
        )
    if not chosen:
        raise InputError(
            f"{label} contains no state dict (a mapping of names to tensors): it is "
            f"{_summary(content)}"
        )
    (tensors,) = chosen.values()
    others = "" if chosen is averaged else ", ".join(averaged)
    return {k: v for k, v in tensors.items() if not _is_counter(k)}, others


def _state_dicts(content: Any, path: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, Mapping):
        return
    # Names to tensors alone, and not only numbers.
    are_arrays = all(isinstance(k, str) and _is_array(v) for k, v in content.items())
    if are_arrays and any(len(v.shape) for v in content.values()):
        yield path, content
    elif depth:
        for key, value in content.items():
            if isinstance(key, str) and not _NOT_WEIGHTS.search(key):
                yield from _state_dicts(value, f"{path}.{key}" if path else key, depth - 1)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _parts(path: str, tensors: Mapping[str, Any]) -> Iterator[tuple[str, bool, Mapping[str, Any]]]:
    """Splits off averaged copies that are in a state dict under a prefix, as in Lightning's."""
    if any(_AVERAGED.search(key) for key in path.split(".")):
        yield path, True, tensors
        return
    firsts = {n.partition(".")[0] for n in tensors if not _is_counter(n)}
    prefixes = {first for first in firsts if _AVERAGED.search(first)}
    rest = {n: t for n, t in tensors.items() if n.partition(".")[0] not in prefixes}
    if not rest:
        yield path, False, tensors
        return
    yield path, False, rest
    for prefix in sorted(prefixes):
        part = {n: t for n, t in tensors.items() if n.partition(".")[0] == prefix}
        yield f"{path}.{prefix}" if path else prefix, True, part


def _is_counter(name: str) -> bool:
    """`n_averaged`, which torch's AveragedModel adds to the weights it averages."""
    return name.rpartition(".")[2] == "n_averaged"


def _summary(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "empty"
    if odd := [key for key in content if not isinstance(key, str)]:
        return f"a mapping whose keys are not all names, e.g. {odd[0]!r}"
    facts = [f"{key} ({type(value).__name__})" for key, value in list(content.items())[:6]]
    odd = [f"{key} ({type(v).__name__})" for key, v in content.items() if not _is_array(v)]
    if len(odd) < len(content) and len(facts) - len(odd) > 2:
        return f"a mapping of tensors, but for {', '.join(odd)}" if odd else "numbers alone"
    return f"a mapping of {', '.join(facts)}{' and more' if len(content) > 6 else ''}"


def as_float32(tensors: Mapping[str, Any], label: object) -> dict[str, np.ndarray]:
    """Converts tensors of torch, NumPy or JAX, on any device, to arrays; any float to float32.

    Raises:
        InputError: a tensor without values, or with values that are not real numbers.
    """
    arrays = {}
    for name, tensor in tensors.items():
        try:
            if hasattr(tensor, "detach"):  # torch's; NumPy has no bfloat16
                tensor = tensor.detach().cpu()
                tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            array = np.asarray(tensor)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            reason = first_line(error)
            raise InputError(f"{label}: {name} has no values to read ({reason})") from error
        if jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(np.float32, copy=False)
        elif array.dtype.kind not in "iub":
            raise InputError(f"{label}: {name} is of type {array.dtype}; weights are real numbers")
        arrays[name] = array
    return arrays


# Names


def match_names(given: Mapping[str, T], expected: Collection[str], label: object) -> dict[str, T]:
    """Renames tensors to the names a model expects, as far as spelling alone sets them apart.

    `module.` and `_orig_mod.` are removed anywhere, old DenseNet names become today's, and a prefix
    of all names is removed if they fit better without it. Unexpected names stay as spelled.

    Raises:
        InputError: one name in two spellings.
    """
    own: dict[str, str] = {todays_name(name): name for name in expected}
    spellings = defaultdict(list)
    for name in given:
        spellings[todays_name(name)].append(name)
    for same in spellings.values():
        if len(same) > 1:
            raise InputError(f"{label} contains one tensor under two names: {' and '.join(same)}")
    prefixes = ["", *common_prefixes(spellings)]
    prefix = max(prefixes, key=lambda p: sum(name[len(p) :] in own for name in spellings))
    bare = {name.removeprefix(prefix): spelled for name, (spelled,) in spellings.items()}
    return {str(own.get(name, spelled)): given[spelled] for name, spelled in bare.items()}


def todays_name(name: str) -> str:
    """Returns a tensor's name without wrappers of modules, as torchvision spells it today.

    DataParallel's `module.` and torch.compile's `_orig_mod.` are before a name or within it
    (`features.module.0.weight`); old DenseNet files have `norm.1.weight` for `norm1.weight`.
    """
    name = re.sub(r"(?<![^.])(?:(?:module|_orig_mod)\.)+", "", name)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def common_prefixes(names: Collection[str]) -> list[str]:
    """Returns `["model.", "model.backbone."]` where all names begin so, the shortest first."""
    split = [name.split(".")[:-1] for name in names]
    prefixes, prefix = [], ""
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        prefix += f"{parts[0]}."
        prefixes.append(prefix)
    return prefixes


# Layout


class Slot(NamedTuple):
    """A variable of the model, and the order of its array's axes in torch.

    `view` is the variable's shape with its flattened axes apart, where torch flattens them in
    another order.
    """

    variable: nnx.Variable
    to_torch: tuple[int, ...]
    view: tuple[int, ...] | None = None

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns torch's array in the variable's layout; a last layer may have other classes."""
        if self.view is not None:
            array = array.reshape(-1, *(self.view[i] for i in self.to_torch[1:]))
        array = np.ascontiguousarray(array.transpose(np.argsort(self.to_torch)))
        return array if self.view is None else array.reshape(-1, array.shape[-1])

    def as_torch(self) -> np.ndarray:
        array = np.asarray(self.variable[...]).reshape(self.view or self.variable.shape)
        return np.ascontiguousarray(array.transpose(self.to_torch)).reshape(self.torch_shape)

    @property
    def torch_shape(self) -> tuple[int, ...]:
        order = self.to_torch if self.view is None else _KERNEL_ORDER[2]
        return tuple(self.variable.shape[i] for i in order)


_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_KERNEL_ORDER = {4: (3, 2, 0, 1), 2: (1, 0)}  # by axes: HWIO -> OIHW, IO -> OI
COUNTER = "num_batches_tracked"  # of batch norms in torch's files; unused here


def torch_slots(model: Classifier) -> dict[str, Slot]:
    """Returns every variable of the model by its torch name, in torch's order."""
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
            order = _KERNEL_ORDER[len(view or layer.kernel.shape)]
            slots[f"{name}.weight"] = Slot(layer.kernel, order, view)
            if layer.bias is not None:
                slots[f"{name}.bias"] = Slot(layer.bias, (0,))
    return slots


def torch_filters(model: Classifier) -> dict[str, np.ndarray]:
    """Returns the fixed filters in the model's torch file, by name."""
    filters = {}
    for name, layer in model.torch_layers():
        if isinstance(layer, Filter):
            taps = binomial_taps(layer.filter_size)
            kernel = np.outer(taps, taps).astype(np.float32)
            filters[f"{name}.filt"] = np.tile(kernel, (layer.channels, 1, 1, 1))
    return filters


def to_torch_state_dict(model: Classifier) -> dict[str, np.ndarray]:
    """Returns the model's weights with the names, order and layout of the PyTorch original.

    `torch_model.load_state_dict(..., strict=True)` takes them once each array is a tensor; fixed
    filters and `num_batches_tracked` (0) are included. Convolutions are `(out, in, h, w)`, linear
    layers `(out, in)`.

    Raises:
        InputError: a model of `aa_flax.fuse`, or one whose family has no torch layout.

    Examples:
        >>> import aa_flax
        >>> state = aa_flax.to_torch_state_dict(aa_flax.create_model("resnet18_lpf4"))
        >>> state["conv1.weight"].shape
        (64, 3, 7, 7)
        >>> state["layer2.0.conv2.0.filt"].shape  # the fixed filter of a BlurPool
        (128, 1, 4, 4)
    """
    slots, filters, state = torch_slots(model), torch_filters(model), {}
    for name, layer in model.torch_layers():
        state |= {key: slots[key].as_torch() for key in slots if key.rpartition(".")[0] == name}
        if isinstance(layer, Filter):
            state[f"{name}.filt"] = filters[f"{name}.filt"]
        if isinstance(layer, BatchNorm):
            state[f"{name}.{COUNTER}"] = np.zeros((), np.int64)
    return state
