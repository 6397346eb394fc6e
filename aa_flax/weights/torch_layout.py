"""Where each net's layers stand in its torch file: one function a family, in torch's order."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flax import nnx

from aa_flax.errors import InputError
from aa_flax.layers import BatchNorm
from aa_flax.models.resnet import BasicBlock, ResNet


class Filter(NamedTuple):
    """A BlurPool in a torch file: its fixed filter, repeated for each channel."""

    filter_size: int
    channels: int


Layers = Iterator[tuple[str, BatchNorm | nnx.Conv | nnx.Linear | Filter]]


def _resnet_layers(model: ResNet) -> Layers:
    yield "conv1", model.conv1
    yield "bn1", model.bn1
    if model.filter_size is not None:
        if not model.pool_only:
            yield "maxpool.0", Filter(model.filter_size, 64)
        yield f"maxpool.{1 if model.pool_only else 2}", Filter(model.filter_size, 64)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for i, block in enumerate(getattr(model, stage)):
            for name, layer in _residual_block_layers(block, model.filter_size):
                yield f"{stage}.{i}.{name}", layer
    yield "fc", model.fc


def _residual_block_layers(block, filter_size) -> Layers:
    """Where a block is antialiased, its last convolution stands behind the filter: `conv3.1`."""
    count = 2 if isinstance(block, BasicBlock) else 3
    for i in range(1, count + 1):
        conv, name = getattr(block, f"conv{i}"), f"conv{i}"
        if i == count and block.blur is not None:
            yield f"{name}.0", Filter(filter_size, conv.in_features)
            name = f"{name}.1"
        yield name, conv
        yield f"bn{i}", getattr(block, f"bn{i}")
    if block.downsample is not None:
        shortcut, shift = block.downsample, 0
        if shortcut.blur is not None:
            yield "downsample.0", Filter(filter_size, shortcut.conv.in_features)
            shift = 1
        yield f"downsample.{shift}", shortcut.conv
        yield f"downsample.{shift + 1}", shortcut.bn


_FAMILIES: dict[type, Callable[[Any], Layers]] = {ResNet: _resnet_layers}


def torch_layers(model: nnx.Module) -> Layers:
    """The model's layers under their names in a torch file, in torch's order."""
    for family, layers in _FAMILIES.items():
        if isinstance(model, family):
            return layers(model)
    raise InputError(f"no torch layout is known for {type(model).__name__}")
