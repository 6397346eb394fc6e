"""The table of nets: the only place that knows a net's name, how it is built, which weights are
released for it, and what was published about them.

`released_weights.tsv` lists the original's 59 files and the 23 torchvision baselines they are
compared with; `published_results.tsv` every published accuracy and consistency.
"""

import csv
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import cache, partial
from importlib.resources import files
from typing import Literal, NamedTuple

from aa_flax.errors import InputError
from aa_flax.models.alexnet import AlexNet
from aa_flax.models.classifier import Classifier
from aa_flax.models.densenet import DenseNet
from aa_flax.models.mobilenet import MobileNetV2
from aa_flax.models.resnet import BasicBlock, Bottleneck, ResNet
from aa_flax.models.vgg import VGG

FILTER_SIZES = range(1, 8)

_resnext50 = {"groups": 32, "width_per_group": 4}
_resnext101 = {"groups": 32, "width_per_group": 8}
_wide = {"width_per_group": 128}

# The nets without antialiasing, each a torchvision net; `filter_size=k` makes `<name>_lpf<k>`.
BASELINES: Mapping[str, Callable[..., Classifier]] = {
    "alexnet": AlexNet,
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg11_bn": partial(VGG, (1, 1, 2, 2, 2), batch_norm=True),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg13_bn": partial(VGG, (2, 2, 2, 2, 2), batch_norm=True),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg16_bn": partial(VGG, (2, 2, 3, 3, 3), batch_norm=True),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "vgg19_bn": partial(VGG, (2, 2, 4, 4, 4), batch_norm=True),
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": partial(ResNet, Bottleneck, (3, 4, 6, 3), **_resnext50),
    "resnext101_32x8d": partial(ResNet, Bottleneck, (3, 4, 23, 3), **_resnext101),
    "wide_resnet50_2": partial(ResNet, Bottleneck, (3, 4, 6, 3), **_wide),
    "wide_resnet101_2": partial(ResNet, Bottleneck, (3, 4, 23, 3), **_wide),
    "densenet121": partial(DenseNet, (6, 12, 24, 16)),
    "densenet161": partial(DenseNet, (6, 12, 36, 24), growth_rate=48, num_init_features=96),
    "densenet169": partial(DenseNet, (6, 12, 32, 32)),
    "densenet201": partial(DenseNet, (6, 12, 48, 32)),
    "mobilenet_v2": MobileNetV2,
}


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


def list_models(pattern: str = "*", *, pretrained: bool | None = None) -> list[str]:
    """Names that `create_model` accepts and that match a shell pattern such as `resnet*_lpf4`."""
    published = {row.model for row in released_weights()}
    names = []
    for base in BASELINES:
        names += [base, *(f"{base}_lpf{k}" for k in FILTER_SIZES)]
    return [
        name for name in names if fnmatch(name, pattern) and pretrained in (None, name in published)
    ]


def parse_name(name: str) -> tuple[str, int | None]:
    """Splits `resnet50_lpf4` into `("resnet50", 4)` and `resnet50` into `("resnet50", None)`.

    The original's `resnet50_lpf4_finetune` is `resnet50_lpf4`: the ending names weights, not a net.

    Raises:
        InputError: an unknown net or filter size; the message suggests the nearest name.
    """
    match = re.fullmatch(r"(.+?)(?:_lpf(\d+)(?:_finetune)?)?", name)
    base, size = match.groups() if match else (name, None)
    if base in BASELINES and (size is None or int(size) in FILTER_SIZES):
        return base, None if size is None else int(size)
    nearest = get_close_matches(name, list_models(), n=3)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "see aa_flax.list_models()"
    raise InputError(f"unknown model {name!r}; {hint}")


def build(name: str, **options) -> Classifier:
    """Builds a net by name; `options` go to its class."""
    base, filter_size = parse_name(name)
    model = BASELINES[base](filter_size=filter_size, **options)
    model.name = base if filter_size is None else f"{base}_lpf{filter_size}"
    return model


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
