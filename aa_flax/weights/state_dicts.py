"""The state dict in what people keep one in: wrappers, prefixes, averaged copies, any floats."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from aa_flax.errors import InputError

T = TypeVar("T")

# What a training checkpoint holds beside weights.
_NOT_WEIGHTS = re.compile(
    r"optim|sched|scaler|criterion|loss|args|config|hyper|callbacks|loops|rng", re.IGNORECASE
)
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged)(_|$)", re.IGNORECASE)
_DEPTH = 3  # of wrappers in wrappers


class StateDict(NamedTuple):
    """Tensors by name, as spelt there; and which averaged ones stand beside them."""

    tensors: Mapping[str, Any]
    averaged: str = ""


def find_state_dict(content: Any, label: object, *, ema: bool = False) -> StateDict:
    """The one state dict in the content of a checkpoint, bare or in wrappers of any name.

    Args:
        label: what the content is of, for errors.
        ema: take the averaged weights (`model_ema`, `state_dict_ema`, `ema_model.` ...).

    Raises:
        InputError: there is none, or more than one; the message says what there is.
    """
    plain: dict[str, Mapping[str, Any]] = {}
    averaged: dict[str, Mapping[str, Any]] = {}
    for path, tensors in _state_dicts(content):
        for place, is_averaged, part in _parts(path, tensors):
            (averaged if is_averaged else plain)[place] = part
    if ema and not averaged:
        raise InputError(f"{label} holds no EMA weights; there is {_what(content)}")
    chosen = averaged if ema or not plain else plain
    if len(chosen) > 1:  # numbers of a run, say, hold no layer
        layered = {k: v for k, v in chosen.items() if any(n.endswith("weight") for n in v)}
        chosen = layered or chosen
    if len(chosen) > 1:
        raise InputError(
            f"{label} holds several state dicts ({', '.join(chosen)}); give the one that is meant "
            "alone, as a mapping or a file"
        )
    if not chosen:
        raise InputError(
            f"{label} holds no state dict (a mapping of names to tensors): it is {_what(content)}"
        )
    (tensors,) = chosen.values()
    beside = "" if chosen is averaged else ", ".join(averaged)
    return StateDict({k: v for k, v in tensors.items() if not _is_counter(k)}, beside)


def _state_dicts(content: Any, path: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, Mapping):
        return
    if _is_state_dict(content):
        yield path, content
    elif depth:
        for key, value in content.items():
            if isinstance(key, str) and not _NOT_WEIGHTS.search(key):
                yield from _state_dicts(value, f"{path}.{key}" if path else key, depth - 1)


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Names to tensors alone, and not only numbers."""
    return all(isinstance(k, str) and _is_array(v) for k, v in content.items()) and any(
        len(v.shape) for v in content.values()
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _parts(path: str, tensors: Mapping[str, Any]) -> Iterator[tuple[str, bool, Mapping[str, Any]]]:
    """A state dict, apart from the averaged copy that stands in it under a prefix."""
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


def _what(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "empty"
    if any(not isinstance(key, str) for key in content):
        key = next(key for key in content if not isinstance(key, str))
        return f"a mapping whose keys are not all names, e.g. {key!r}"
    facts = [f"{key} ({type(value).__name__})" for key, value in list(content.items())[:6]]
    odd = [f"{key} ({type(v).__name__})" for key, v in content.items() if not _is_array(v)]
    if len(odd) < len(content) and len(facts) - len(odd) > 2:
        return f"a mapping of tensors, but for {', '.join(odd)}" if odd else "numbers alone"
    return f"a mapping of {', '.join(facts)}{' and more' if len(content) > 6 else ''}"


def as_float32(tensors: Mapping[str, Any], label: object) -> dict[str, np.ndarray]:
    """Tensors of torch, NumPy or JAX, on any device, as arrays; floats of any width as float32.

    Raises:
        InputError: a tensor without values, or of values that are no real numbers.
    """
    return {name: _to_numpy(tensor, name, label) for name, tensor in tensors.items()}


def _to_numpy(tensor: Any, name: str, label: object) -> np.ndarray:
    try:
        if hasattr(tensor, "detach"):  # torch's; NumPy has no bfloat16 of its own
            tensor = tensor.detach().cpu()
            tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        array = np.asarray(tensor)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{label}: {name} has no values to read ({reason})") from error
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(np.float32, copy=False)
    if array.dtype.kind not in "iub":
        raise InputError(f"{label}: {name} is of type {array.dtype}; weights are real numbers")
    return array


def check_floats(arrays: Mapping[str, np.ndarray], label: object) -> None:
    """Raises an InputError if an array that becomes a weight holds integers (quantised, say), or
    what is no finite number."""
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(
                f"{label}: {name} is of type {array.dtype}; weights are floating-point numbers"
            )
        if not np.isfinite(array).all():
            raise InputError(
                f"{label}: {name} holds values that are not finite (or beyond float32); the "
                "training it comes from diverged, or the file is damaged"
            )


def match_names(given: Mapping[str, T], expected: Collection[str], label: object) -> dict[str, T]:
    """Gives tensors the names a net expects, as far as spelling alone sets them apart.

    `module.` and `_orig_mod.` go wherever they stand, old DenseNet names become today's, and a
    prefix that all names have goes if they fit better without it. Unexpected names stay as spelt.

    Raises:
        InputError: one name in two spellings.
    """
    own: dict[str, str] = {todays_name(name): name for name in expected}
    spellings = defaultdict(list)
    for name in given:
        spellings[todays_name(name)].append(name)
    for same in spellings.values():
        if len(same) > 1:
            raise InputError(f"{label} holds one tensor under two names: {' and '.join(same)}")
    prefixes = ["", *common_prefixes(spellings)]
    prefix = max(prefixes, key=lambda p: sum(name[len(p) :] in own for name in spellings))
    bare = {name.removeprefix(prefix): spelt for name, (spelt,) in spellings.items()}
    return {str(own.get(name, spelt)): given[spelt] for name, spelt in bare.items()}


def todays_name(name: str) -> str:
    """A tensor's name without what wraps a module, and as torchvision spells it today.

    DataParallel's `module.` and torch.compile's `_orig_mod.` stand before a name or within it
    (`features.module.0.weight`); old DenseNet files have `norm.1.weight` for `norm1.weight`.
    """
    name = re.sub(r"(?<![^.])(?:(?:module|_orig_mod)\.)+", "", name)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def common_prefixes(names: Collection[str]) -> list[str]:
    """`["model.", "model.backbone."]` where all names begin so, the shortest first."""
    split = [name.split(".")[:-1] for name in names]
    prefixes, prefix = [], ""
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        prefix += f"{parts[0]}."
        prefixes.append(prefix)
    return prefixes
