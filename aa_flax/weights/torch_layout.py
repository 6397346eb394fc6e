"""Where each net's layers stand in its torch file: one function a family, in torch's order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from flax import nnx

from aa_flax.errors import InputError
from aa_flax.layers import BatchNorm
from aa_flax.models.alexnet import AlexNet
from aa_flax.models.densenet import DenseNet
from aa_flax.models.mobilenet import MobileNetV2
from aa_flax.models.resnet import BasicBlock, ResNet
from aa_flax.models.vgg import VGG


class Filter(NamedTuple):
    """A BlurPool in a torch file: its fixed filter, repeated for each channel."""

    filter_size: int
    channels: int


class Flattened(NamedTuple):
    """A linear layer on a flattened feature map: channels come first in torch, last in Flax."""

    linear: nnx.Linear
    height: int
    width: int


Layer = BatchNorm | nnx.Conv | nnx.Linear | Filter | Flattened
Layers = Iterator[tuple[str, Layer]]


def _sequential(prefix: str, layers: Sequence[Layer | None]) -> Layers:
    """torch's Sequential: layers are named by their place; None: one that holds nothing."""
    for i, layer in enumerate(layers):
        if layer is not None:
            yield f"{prefix}.{i}", layer


# What stands in a Sequential and holds nothing.
_relu = _max_pool = _dropout = None


def _filters(model, channels: int) -> list[Layer | None]:
    return [] if model.filter_size is None else [Filter(model.filter_size, channels)]


def _alexnet_layers(model: AlexNet) -> Layers:
    if model.filter_size is None:
        stem = [_relu]
    elif model.pool_only:
        stem = []
    else:
        stem = [_relu, *_filters(model, 64)] if model.relu_first else [*_filters(model, 64), _relu]
    features = [model.conv1, *stem, _max_pool, *_filters(model, 64)]
    features += [model.conv2, _relu, _max_pool, *_filters(model, 192)]
    features += [model.conv3, _relu, model.conv4, _relu, model.conv5, _relu, _max_pool]
    yield from _sequential("features", [*features, *_filters(model, 256)])
    first = Flattened(model.fc1, 6, 6)
    classifier = [_dropout, first, _relu, _dropout, model.fc2, _relu, model.fc3]
    yield from _sequential("classifier", classifier)


def _vgg_layers(model: VGG) -> Layers:
    features = []
    for stage in model.stages:
        for block in stage:
            features += [block.conv, *([] if block.bn is None else [block.bn]), _relu]
        features += [_max_pool, *_filters(model, stage[-1].conv.out_features)]
    yield from _sequential("features", features)
    first = Flattened(model.fc1, 7, 7)
    classifier = [first, _relu, _dropout, model.fc2, _relu, _dropout, model.fc3]
    yield from _sequential("classifier", classifier)


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


def _densenet_layers(model: DenseNet) -> Layers:
    yield "features.conv0", model.conv0
    yield "features.norm0", model.norm0
    if model.filter_size is not None:
        blur = Filter(model.filter_size, model.conv0.out_features)
        if not model.pool_only:
            yield "features.ds0", blur
        yield "features.pool0", blur
    for i, block in enumerate(model.blocks, 1):
        for j, layer in enumerate(block, 1):
            for name in ("norm1", "conv1", "norm2", "conv2"):
                yield f"features.denseblock{i}.denselayer{j}.{name}", getattr(layer, name)
        if i < len(model.blocks):
            transition = model.transitions[i - 1]
            yield f"features.transition{i}.norm", transition.norm
            yield f"features.transition{i}.conv", transition.conv
            if model.filter_size is not None:
                blur = Filter(model.filter_size, transition.conv.out_features)
                yield f"features.transition{i}.pool", blur
    yield "features.norm5", model.norm5
    yield "classifier", model.classifier


def _mobilenet_layers(model: MobileNetV2) -> Layers:
    yield "features.0.0", model.stem.conv
    yield "features.0.1", model.stem.bn
    for i, block in enumerate(model.blocks, 1):
        place = 0
        for conv_block in (block.expand, block.depthwise):
            if conv_block is not None:
                yield f"features.{i}.conv.{place}.0", conv_block.conv
                yield f"features.{i}.conv.{place}.1", conv_block.bn
                place += 1
        if block.blur is not None:
            channels = block.project.in_features
            yield f"features.{i}.conv.{place}", Filter(block.blur.filter_size, channels)
            place += 1
        yield f"features.{i}.conv.{place}", block.project
        yield f"features.{i}.conv.{place + 1}", block.bn
    last = len(model.blocks) + 1
    yield f"features.{last}.0", model.head.conv
    yield f"features.{last}.1", model.head.bn
    yield f"classifier.{1 if model.filter_size is None else 0}", model.classifier


_FAMILIES: dict[type, Callable[[Any], Layers]] = {
    AlexNet: _alexnet_layers,
    VGG: _vgg_layers,
    ResNet: _resnet_layers,
    DenseNet: _densenet_layers,
    MobileNetV2: _mobilenet_layers,
}


def torch_layers(model: nnx.Module) -> Layers:
    """The model's layers under their names in a torch file, in torch's order."""
    for family, layers in _FAMILIES.items():
        if isinstance(model, family):
            return layers(model)
    raise InputError(f"no torch layout is known for {type(model).__name__}")
