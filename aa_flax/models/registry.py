"""The table of nets: which there are, how each is built, which weights are released for it, and
what was published about it. A family's file adds its nets, and so may anyone (`register_model`).

`released_weights.tsv` lists the original's 59 files and the 23 torchvision baselines they are
compared with; `published_results.tsv` every published accuracy and consistency.
"""

import csv
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    integers,
    parameters,
    unknown,
)
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import ModelConfig

FILTER_SIZES = range(1, 8)


@dataclass(frozen=True)
class Net:
    """A net of the table, without antialiasing.

    Attributes:
        name: what `create_model` builds it by.
        build: its constructor.
        published: whether there is a published net to compare it with: torchvision's of the same
            name, and `antialiased-cnns`' for its filter sizes.
        filter_sizes: taps k of its antialiased nets, `<name>_lpf<k>`; none: the plain net alone.
        config: what images it expects.
        hub: the repository on the Hugging Face hub with its weights, OWNER/NAME; "": none.
    """

    name: str
    build: Callable[..., Classifier]
    published: bool
    filter_sizes: tuple[int, ...]
    config: ModelConfig = field(default_factory=ModelConfig)
    hub: str = ""


_NETS: Table[Net] = Table("net")


def register_model(
    name: str,
    build: Callable[..., Classifier],
    *,
    published: bool = False,
    filter_sizes: Sequence[int] | None = None,
    config: ModelConfig | None = None,
    hub: str = "",
    replace: bool = False,
) -> None:
    """Makes a net known by name to `create_model`, `list_models` and the commands.

    Args:
        name: letters, digits, `_`, `-` and `.`; not ending like `_lpf4`, which is said of a net's
            antialiased versions.
        build: the net's class, a `partial` of it or a function. It takes keyword arguments:
            `num_classes`, `dtype` and `rngs` always, and what else its options are.
        published: whether there is a published net of that name to compare it with.
        filter_sizes: taps of the BlurPools it comes with as `<name>_lpf<k>`; default 1 to 7 if
            `build` names a parameter `filter_size`, else none.
        config: what images it expects; default: ImageNet's at 224 pixels.
        hub: the repository on the Hugging Face hub that `pretrained=True` takes, OWNER/NAME.
        replace: whether an earlier net of that name may be replaced.

    Raises:
        InputError: a name that is taken or cannot be one, or something that does not build a net.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(f"a net's name has letters, digits, '_', '-' and '.', got {name!r}")
    if re.search(r"_lpf\d+(_finetune)?$", name):
        raise InputError(
            f"{name!r} would be the antialiased version of another net; register the net without "
            "the ending, with a constructor that takes filter_size"
        )
    if not callable(build):
        raise InputError(f"{name}: build must be a class or function, got {build!r}")
    if filter_sizes is None:
        sizes = tuple(FILTER_SIZES) if "filter_size" in parameters(build) else ()
    else:
        sizes = integers("filter_sizes", filter_sizes) if len(filter_sizes) else ()
    net = Net(name, build, published, sizes, config or ModelConfig(), hub)
    _NETS.register(name, net, replace=replace)


def base_names() -> list[str]:
    """Names of all nets without antialiasing, in the order of the table."""
    return list(_NETS)


def hub_repository(name: str) -> str:
    """The repository on the Hugging Face hub with a net's weights, OWNER/NAME; "": none."""
    base, filter_size = parse_name(name)
    return _NETS[base].hub if filter_size is None else ""


def images_of(name: str) -> ModelConfig:
    """Returns what images a model expects, by its name.

    Raises:
        InputError: an unknown name.
    """
    return _NETS[parse_name(name)[0]].config


def has_reference(name: str) -> bool:
    """Whether there is a published net that this one, or the one it is a version of, must equal."""
    return _NETS[parse_name(name)[0]].published


# How released weights were made: torchvision's own, the original's from random weights, or its
# fine-tuning of the baseline.
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


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names that `create_model` accepts.

    Args:
        pattern: a shell pattern that they match, such as `resnet*_lpf4`.
        pretrained: only those that have published weights.
    """
    names = []
    for net in _NETS.values():
        names += [net.name, *(f"{net.name}_lpf{k}" for k in net.filter_sizes)]
    if pretrained:
        released = {weights.model for weights in released_weights()}
        names = [name for name in names if name in released]
    return [name for name in names if fnmatch(name, pattern)]


def parse_name(name: str) -> tuple[str, int | None]:
    """Splits `resnet50_lpf4` into `("resnet50", 4)` and `resnet50` into `("resnet50", None)`.

    The original's `resnet50_lpf4_finetune` is `resnet50_lpf4`: the ending names weights, not a net.

    Raises:
        InputError: an unknown net or filter size; the message suggests the nearest name.
    """
    match = re.fullmatch(r"(.+?)(?:_lpf(\d+)(?:_finetune)?)?", str(name))
    base, size = match.groups() if match else (name, None)
    if base in _NETS and (size is None or int(size) in _NETS[base].filter_sizes):
        return base, None if size is None else int(size)
    nearest = get_close_matches(str(name), list_models(), n=3)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "see aa_flax.list_models()"
    raise UnknownName(f"unknown model {name!r}; {hint}")


def build(name: str, *, remat: bool = False, **options) -> Classifier:
    """Builds a net by name.

    Args:
        name: one of `list_models()`.
        remat: see `Classifier`.
        options: of the net's constructor.

    Raises:
        InputError: an unknown name or option, or a value that the net refuses.
    """
    base, filter_size = parse_name(name)
    net = _NETS[base]
    _check_options(net, options)
    known = parameters(net.build)
    if filter_size is not None:
        options["filter_size"] = filter_size
    model = net.build(**options)
    model.name = base if filter_size is None else f"{base}_lpf{filter_size}"
    model.config = net.config
    model.remat = boolean("remat", remat)
    if model.num_classes is None:  # a family that does not say
        default = known["num_classes"].default if "num_classes" in known else None
        model.num_classes = options.get("num_classes", default)
    model.options = _options_of(model, options, known)
    return model


def _check_options(net: Net, options: dict[str, Any]) -> None:
    if options.pop("filter_size", None) is not None:
        raise InputError(f"filter_size is part of a net's name: ask for {net.name}_lpf<k> instead")
    known = parameters(net.build)
    if "dtype" not in known and options.get("dtype", ...) is None:
        del options["dtype"]
    if options.get("dtype") is not None:
        _check_floating(options["dtype"])
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for option in options:
        if option not in known:
            accepted = [name for name in known if name != "filter_size"]
            message = unknown(f"option of {net.name}", option, accepted)
            having = [other for other in _NETS if option in parameters(_NETS[other].build)]
            there = f"; nets that have it: {', '.join(having)}" if having else ""
            raise InputError(message + there)


def _check_floating(dtype: Any) -> None:
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise InputError(f"dtype must be floating point, e.g. jnp.bfloat16, got {dtype!r}")


# Options that leave the function of the weights as it is, at evaluation, or that the name tells.
_NOT_OF_THE_FUNCTION = {
    "num_classes", "filter_size", "dtype", "rngs", "remat",
    "dropout", "drop_rate", "zero_init_residual",
}  # fmt: skip


def _options_of(model: Classifier, given: dict, known: dict) -> dict[str, Any]:
    """The options that differ from the constructor's defaults, as JSON has them."""
    options = {}
    for name, value in given.items():
        if value is None:  # what the net takes it for, if it says so
            value = getattr(model, name, None)
        default = known[name].default if name in known else inspect.Parameter.empty
        if name not in _NOT_OF_THE_FUNCTION and _as_json(value) != _as_json(default):
            options[name] = _as_json(value)
    return options


def _as_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return [_as_json(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, partial):
        arguments = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        return f"{_as_json(value.func)}({', '.join(arguments)})"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{value.__module__}.{name}"


@cache
def released_weights() -> tuple[ReleasedWeights, ...]:
    """Every released file, net by net."""
    return tuple(
        ReleasedWeights(**{**row, "parameters": int(row["parameters"])})
        for row in _rows("released_weights.tsv")
    )


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """Every published result, in the order of the original's tables."""
    return tuple(
        PublishedResult(
            **{
                **row,
                "accuracy": float(row["accuracy"]),
                "consistency": float(row["consistency"]),
            }
        )
        for row in _rows("published_results.tsv")
    )


def _rows(table: str) -> list[dict]:
    text = files("aa_flax.models").joinpath(table).read_text()
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))
