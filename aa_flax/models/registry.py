"""The registry of models: their constructors, released weights and published results.

A family's file registers its models, and `register_model` adds your own. `released_weights.tsv`
lists the 59 files of the original and the 23 torchvision baselines they are compared with;
`published_results.tsv` lists every published accuracy and consistency.
"""

import csv
import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import cache, partial
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from aa_flax.errors import (
    InputError,
    Table,
    UnknownName,
    boolean,
    choice,
    integers,
    parameters,
    unknown,
)
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import ModelConfig


@dataclass(frozen=True)
class Entry:
    """A model of the registry, without antialiasing: see `register_model`."""

    name: str
    build: Callable[..., Classifier]
    published: bool
    filter_sizes: tuple[int, ...]
    config: ModelConfig
    hub: str
    licence: str


_MODELS: Table[Entry] = Table("model")


def register_model(
    name: str,
    build: Callable[..., Classifier],
    *,
    published: bool = False,
    filter_sizes: Sequence[int] | None = None,
    config: ModelConfig | None = None,
    hub: str = "",
    licence: str = "",
    replace: bool = False,
) -> None:
    """Registers a model under a name for `create_model`, `list_models` and the commands.

    Args:
        name: letters, digits, `_`, `-` and `.`, without an ending such as `_lpf4`.
        build: class of the model, a `partial` of it or a function, with the keyword arguments
            `num_classes`, `dtype` and `rngs`, and its own options.
        published: True if there are published models to compare it with: torchvision's of the same
            name, and those of `antialiased-cnns` for its filter sizes.
        filter_sizes: taps of its antialiased versions `<name>_lpf<k>`; default 1 to 7 if `build`
            has a parameter `filter_size`, else none.
        config: the images it expects; default: ImageNet's at 224 pixels.
        hub: repository on the Hugging Face hub for `pretrained=True`, OWNER/NAME.
        licence: licence of the weights there, as an SPDX identifier; default: unknown.
        replace: replace a model of this name.

    Raises:
        InputError: a name that is taken or invalid, or a constructor that is not callable.

    Examples:
        >>> from functools import partial
        >>> import aa_flax
        >>> from aa_flax.models.resnet import BasicBlock, ResNet
        >>> resnet10 = partial(ResNet, BasicBlock, (1, 1, 1, 1))
        >>> aa_flax.register_model("resnet10", resnet10, replace=True)
        >>> aa_flax.list_models("resnet10_lpf[2-4]")
        ['resnet10_lpf2', 'resnet10_lpf3', 'resnet10_lpf4']
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(f"a model's name has letters, digits, '_', '-' and '.', got {name!r}")
    if re.search(r"_lpf\d+(_finetune)?$", name):
        raise InputError(
            f"{name!r} would be the antialiased version of another model; register the model "
            "without the ending, with a constructor that takes filter_size"
        )
    if not callable(build):
        raise InputError(f"{name}: build must be a class or function, got {build!r}")
    if filter_sizes is None:
        filter_sizes = range(1, 8) if "filter_size" in parameters(build) else ()
    sizes = integers("filter_sizes", filter_sizes) if len(filter_sizes) else ()
    entry = Entry(name, build, published, sizes, config or ModelConfig(), hub, licence)
    _MODELS.register(name, entry, replace=replace)


def base_names() -> list[str]:
    """Returns the names of all models without antialiasing, in the order of the registry."""
    return list(_MODELS)


def hub_repository(name: str) -> str:
    """Returns the repository with a model's weights on the Hugging Face hub, OWNER/NAME, or ""."""
    base, filter_size = parse_name(name)
    return _MODELS[base].hub if filter_size is None else ""


def images_of(name: str) -> ModelConfig:
    """Returns the images that a model expects, by its name."""
    return _MODELS[parse_name(name)[0]].config


def has_reference(name: str) -> bool:
    """Checks whether a published model is the reference of a model or of its baseline."""
    return _MODELS[parse_name(name)[0]].published


# Origin of released weights: torchvision, or the original, which trained from random weights or
# fine-tuned the baseline.
Training = Literal["baseline", "scratch", "finetuned"]


class ReleasedWeights(NamedTuple):
    """A file of published weights; the prefix is the start of its SHA-256 in hexadecimal."""

    model: str
    training: Training
    filename: str
    sha256_prefix: str
    parameters: int


class PublishedResult(NamedTuple):
    """ImageNet accuracy (top-1) and shift consistency in percent, as published."""

    model: str
    training: Training
    accuracy: float
    consistency: float
    source: str


Licence = Literal["open"]
_OPEN = ("apache-2.0", "bsd-2-clause", "bsd-3-clause", "mit")  # SPDX identifiers, in lower case


def list_models(
    pattern: str = "*", *, pretrained: bool = False, licence: Licence | None = None
) -> list[str]:
    """Returns the names that `create_model` accepts, or those of models with published weights.

    Args:
        pattern: one of a shell, such as `resnet*_lpf4`.
        pretrained: only models with weights that the original or torchvision released.
        licence: `"open"`: only models whose published weights may be used commercially, which are
            those registered with a permissive licence; torchvision states none for its weights.

    Raises:
        InputError: another `licence`.

    Examples:
        >>> import aa_flax
        >>> aa_flax.list_models("vgg1?_lpf4")
        ['vgg11_lpf4', 'vgg13_lpf4', 'vgg16_lpf4', 'vgg19_lpf4']
        >>> aa_flax.list_models("resnet*", licence="open")
        ['resnetblur50', 'resnetaa50', 'resnetaa50d', 'resnetaa101d']
    """
    names = []
    for entry in _MODELS.values():
        names += [entry.name, *(f"{entry.name}_lpf{k}" for k in entry.filter_sizes)]
    if licence is not None:
        choice("licence", licence, Licence)
        names = [e.name for e in _MODELS.values() if e.hub and e.licence.lower() in _OPEN]
    elif pretrained:
        released = {weights.model for weights in released_weights()}
        names = [name for name in names if name in released]
    return [name for name in names if fnmatch(name, pattern)]


def parse_name(name: str) -> tuple[str, int | None]:
    """Splits `resnet50_lpf4` into `("resnet50", 4)` and `resnet50` into `("resnet50", None)`."""
    # The ending of the original's `resnet50_lpf4_finetune` is about weights.
    match = re.fullmatch(r"(.+?)(?:_lpf(\d+)(?:_finetune)?)?", str(name))
    base, size = match.groups() if match else (name, None)
    if base in _MODELS and (size is None or int(size) in _MODELS[base].filter_sizes):
        return base, None if size is None else int(size)
    nearest = get_close_matches(str(name), list_models(), n=3)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "see aa_flax.list_models()"
    raise UnknownName(f"unknown model {name!r}; {hint}")


def build(name: str, *, remat: bool = False, **options) -> Classifier:
    """Builds a model by name; options are those of its constructor."""
    base, filter_size = parse_name(name)
    entry = _MODELS[base]
    known = parameters(entry.build)
    _check_options(entry, options, known)
    if filter_size is not None:
        options["filter_size"] = filter_size
    model = entry.build(**options)
    model.name = base if filter_size is None else f"{base}_lpf{filter_size}"
    model.config = entry.config
    model.remat = boolean("remat", remat)
    if model.num_classes is None:  # not set by the family
        default = known["num_classes"].default if "num_classes" in known else None
        model.num_classes = options.get("num_classes", default)
    model.options = _options_of(model, options, known)
    return model


def _check_options(entry: Entry, options: dict[str, Any], known: dict) -> None:
    if options.pop("filter_size", None) is not None:
        raise InputError(f"filter_size is part of the model's name: use {entry.name}_lpf<k>")
    if "dtype" not in known and options.get("dtype", ...) is None:
        del options["dtype"]
    if (dtype := options.get("dtype")) is not None and not _is_floating(dtype):
        raise InputError(f"dtype must be floating point, e.g. jnp.bfloat16, got {dtype!r}")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for option in options:
        if option not in known:
            accepted = [name for name in known if name != "filter_size"]
            having = [other for other in _MODELS if option in parameters(_MODELS[other].build)]
            hint = f"; models that have it: {', '.join(having)}" if having else ""
            raise InputError(unknown(f"option of {entry.name}", option, accepted) + hint)


def _is_floating(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


# Options that do not change the function of the weights at evaluation, or are part of the name.
_NOT_OF_THE_FUNCTION = {
    "num_classes", "filter_size", "dtype", "rngs", "remat",
    "dropout", "drop_rate", "zero_init_residual",
}  # fmt: skip


def _options_of(model: Classifier, given: dict, known: dict) -> dict[str, Any]:
    """Returns the options that differ from the constructor's defaults, in types of JSON."""
    options = {}
    for name in given.keys() - _NOT_OF_THE_FUNCTION:
        # None is the default, which the model may have as an attribute.
        value = getattr(model, name, None) if given[name] is None else given[name]
        default = known[name].default if name in known else inspect.Parameter.empty
        if _as_json(value) != _as_json(default):
            options[name] = _as_json(value)
    return options


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=_of_other_type))


def _of_other_type(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, partial):
        arguments = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        return f"{_as_json(value.func)}({', '.join(arguments)})"
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{value.__module__}.{name}"


@cache
def released_weights() -> tuple[ReleasedWeights, ...]:
    """Returns every released file, model by model."""
    return tuple(
        ReleasedWeights(model, training, file, sha256, int(parameters))
        for model, training, file, sha256, parameters in _rows("released_weights.tsv")
    )


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """Returns every published result, in the order of the original's tables."""
    return tuple(
        PublishedResult(model, training, float(accuracy), float(consistency), source)
        for model, training, accuracy, consistency, source in _rows("published_results.tsv")
    )


def _rows(table: str) -> list[list[Any]]:
    """Returns the rows below the first, which names the fields."""
    text = files("aa_flax.models").joinpath(table).read_text()
    return list(csv.reader(text.splitlines(), delimiter="\t"))[1:]
