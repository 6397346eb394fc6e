"""ResNet (He et al. 2016), ResNeXt (Xie et al. 2017) and Wide ResNet, plain and antialiased.

With `filter_size=None` these are torchvision's models. With a filter size every strided layer runs
at stride 1, and BlurPool, or another pool, applies the stride (Zhang, ICML 2019, Sec. 3.2, fig. 2):

    max pool, stride 2          ->  max pool, stride 1  -  BlurPool, stride 2
    conv, stride 2  -  ReLU     ->  conv, stride 1  -  ReLU  -  BlurPool, stride 2
    1x1 conv, stride 2          ->  BlurPool, stride 2  -  1x1 conv       (the shortcut)

By default the stem's convolution keeps its stride (`pool_only`), as in all published weights. As in
the original, the max pool of the antialiased stem has a window of 2, not 3, whatever the
pool. BlurPool has no variables, so a plain model and its antialiased one have the same state tree.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError, boolean, integer, integers
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import register_model
from aa_flax.models.stems import DeepStem, stem_convolution
from aa_flax.models.torch_layout import Layers, pool_layers, sequential
from aa_flax.nn.initializers import Initializer, ones, zeros
from aa_flax.nn.layers import LayerFactory
from aa_flax.nn.pool_registry import PoolFactory, decide, pool_factory, subsample
from aa_flax.ops import materialised, max_pool


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut; the stride is that of the first."""

    expansion = 1
    depth = 2

    def __init__(
        self,
        make: LayerFactory,
        in_features: int,
        features: int,
        *,
        stride: int,
        dilations: tuple[int, int],
        groups: int,
        base_width: int,
        last_scale: Initializer,
        squeeze_excitation: bool = False,
    ):
        if groups != 1 or base_width != 64:
            raise InputError(f"BasicBlock has one group of width 64, got {groups} of {base_width}")
        first, second = ({"padding": dilation, "dilation": dilation} for dilation in dilations)
        self.pool = make.pool(stride, features)
        conv_stride = stride if self.pool is None else 1
        self.conv1 = make.conv(in_features, features, 3, stride=conv_stride, **first)
        self.bn1 = make.batch_norm(features)
        self.conv2 = make.conv(features, features, 3, **second)
        self.bn2 = make.batch_norm(features, scale_init=last_scale)
        self.se = SqueezeExcitation(make, features) if squeeze_excitation else None
        self.downsample = _downsample(make, in_features, features, stride)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        choice = decide(self.pool, y)
        y = subsample(self.pool, y, choice)  # BlurPool, where torchvision's conv1 has the stride
        y = self.bn2(self.conv2(y))
        y = y if self.se is None else self.se(y)
        shortcut = x if self.downsample is None else self.downsample(x, choice)
        return materialised(jax.nn.relu(y + shortcut))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the stride is that of the 3x3."""

    expansion = 4
    depth = 3

    def __init__(
        self,
        make: LayerFactory,
        in_features: int,
        features: int,
        *,
        stride: int,
        dilations: tuple[int, int],
        groups: int,
        base_width: int,
        last_scale: Initializer,
        squeeze_excitation: bool = False,
    ):
        dilation, _ = dilations  # there is one 3x3 convolution, dilated as the layers before
        width = features * base_width // 64 * groups
        out_features = features * self.expansion
        self.pool = make.pool(stride, width)
        self.conv1 = make.conv(in_features, width, 1)
        self.bn1 = make.batch_norm(width)
        options = {"padding": dilation, "dilation": dilation, "groups": groups}
        conv_stride = stride if self.pool is None else 1
        self.conv2 = make.conv(width, width, 3, stride=conv_stride, **options)
        self.bn2 = make.batch_norm(width)
        self.conv3 = make.conv(width, out_features, 1)
        self.bn3 = make.batch_norm(out_features, scale_init=last_scale)
        self.se = SqueezeExcitation(make, out_features) if squeeze_excitation else None
        self.downsample = _downsample(make, in_features, out_features, stride)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        choice = decide(self.pool, y)
        y = subsample(self.pool, y, choice)  # BlurPool, where torchvision's conv2 has the stride
        y = self.bn3(self.conv3(y))
        y = y if self.se is None else self.se(y)
        shortcut = x if self.downsample is None else self.downsample(x, choice)
        return materialised(jax.nn.relu(y + shortcut))


class SqueezeExcitation(nnx.Module):
    """Scales each channel by a gate, 0 to 1, that depends on the means of all channels.

    The gate is sigmoid(W2 relu(W1 m + b1) + b2) of the means m, through a sixteenth of the features
    (Hu et al., CVPR 2018, Sec. 3).
    """

    def __init__(self, make: LayerFactory, features: int):
        self.fc1 = make.conv(features, features // 16, 1, use_bias=True)  # convolutions, as in timm
        self.fc2 = make.conv(features // 16, features, 1, use_bias=True)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        means = x.mean((1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(means))))


class Downsample(nnx.Module):
    """The shortcut where a block changes size: [pool] - 1x1 convolution - BatchNorm."""

    def __init__(self, make: LayerFactory, in_features: int, out_features: int, stride: int):
        self.pool = make.pool(stride, in_features, follows=True)
        conv_stride = stride if self.pool is None else 1
        self.conv = make.conv(in_features, out_features, 1, stride=conv_stride)
        self.bn = make.batch_norm(out_features)

    def __call__(self, x: Float[Array, "N H W C"], choice: Any) -> Float[Array, "N h w c"]:
        """Pools by the `choice` of the main branch's pool, if it makes one, then convolves."""
        return self.bn(self.conv(subsample(self.pool, x, choice)))


def _downsample(
    make: LayerFactory, in_features: int, out_features: int, stride: int
) -> Downsample | None:
    if stride == 1 and in_features == out_features:
        return None  # the shortcut is the identity
    return Downsample(make, in_features, out_features, stride)


class ResNet(Classifier):
    """A residual network of `BasicBlock`s or `Bottleneck`s, plain or antialiased.

    Args:
        layers: number of blocks in each of the four stages.
        num_classes, filter_size, pool, dtype: options of every model, see `Classifier`.
        groups, width_per_group: ResNeXt's cardinality, and the width of a group at 64 features.
        pool_only: antialias the stem's max pool, not its convolution (as all published weights);
            False runs the stem's convolution at stride 1 too, at four times its cost.
        output_stride: factor by which the last map is smaller than the images: 32, or 16 or 8 with
            dilated convolutions instead of the last stride or the last two, and without their
            pools. With `stem="small"` it is a quarter of that.
        stem: "small" is for images such as CIFAR's 32x32: a 3x3 convolution of stride 1 and no max
            pool. "deep" has three 3x3 convolutions in place of the 7x7 one (He et al. 2019).
        squeeze_excitation: scale the channels of each residual branch (Hu et al. 2018).
        zero_init_residual: start each residual branch at zero (Goyal et al. 2017).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        *,
        num_classes: int = 1000,
        filter_size: int | None = None,
        pool: str | PoolFactory | None = None,
        groups: int = 1,
        width_per_group: int = 64,
        pool_only: bool = True,
        output_stride: int = 32,
        stem: Literal["imagenet", "small", "deep"] = "imagenet",
        squeeze_excitation: bool = False,
        zero_init_residual: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_classes=num_classes, filter_size=filter_size, pool=pool)
        self.pool_only = boolean("pool_only", pool_only)
        if output_stride not in (8, 16, 32):
            raise InputError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
        self.output_stride = int(output_stride)
        layers = integers("layers", layers, count=4)
        make = LayerFactory(rngs, dtype, pool_factory(filter_size, pool))
        new_block = partial(
            block,
            make,
            groups=integer("groups", groups, least=1),
            base_width=integer("width_per_group", width_per_group, least=1),
            last_scale=zeros if boolean("zero_init_residual", zero_init_residual) else ones,
            squeeze_excitation=boolean("squeeze_excitation", squeeze_excitation),
        )
        first = stem_convolution(stem, pool_only=self.pool_only, is_antialiased=self.is_antialiased)
        self.is_small = first.is_small
        self.conv1 = first.layer(make, 64)
        self.bn1 = make.batch_norm(64)
        self.conv_pool = make.pool(first.pool_stride, 64)
        self.pool = make.pool(1 if self.is_small else 2, 64)

        in_features, dilation, stages = 64, 1, []
        for i, count in enumerate(layers):
            features, stride, before = 64 * 2**i, 1 if i == 0 else 2, dilation
            if 4 * 2**i > output_stride:  # dilated instead of strided
                dilation, stride = dilation * stride, 1
            stage = []
            for _ in range(count):
                dilations = (before, dilation)
                stage.append(new_block(in_features, features, stride=stride, dilations=dilations))
                in_features, stride, before = features * block.expansion, 1, dilation
            stages.append(nnx.List(stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = self._new_last_layer(in_features, self.num_classes, dtype=dtype, rngs=rngs)

    def stem(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w 64"]:
        """First convolution and max pool: a quarter of the resolution, or all of it if small."""
        x = self._stem_conv(x)
        return x if self.is_small else self._stem_pool(x)

    def _stem_conv(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w 64"]:
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        return subsample(self.conv_pool, x)  # BlurPool only with pool_only=False

    def _stem_pool(self, x: Float[Array, "N H W 64"]) -> Float[Array, "N h w 64"]:
        if self.pool is None:
            return max_pool(x, 3, stride=2, padding=1)
        return subsample(self.pool, max_pool(x, 2, stride=1))

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self.stem
        yield from self._residual_blocks()

    def feature_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self._stem_conv
        if not self.is_small:
            yield "pool", self._stem_pool
        yield from self._residual_blocks()

    def level_ends(self) -> Sequence[str]:  # stages end a level whether strided or dilated
        last = {name.partition(".")[0]: name for name, _ in self._residual_blocks()}
        return ["stem", *last.values()]

    def _residual_blocks(self) -> Iterator[tuple[str, BasicBlock | Bottleneck]]:
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for i, block in enumerate(getattr(self, name)):
                yield f"{name}.{i}", block

    def torch_layers(self) -> Layers:
        if isinstance(self.conv1, DeepStem):
            yield from sequential("conv1", self.conv1.sequential())
        else:
            yield "conv1", self.conv1
        yield "bn1", self.bn1
        yield from pool_layers("maxpool.0", self.conv_pool, 64)
        yield from pool_layers(f"maxpool.{1 if self.pool_only else 2}", self.pool, 64)
        for prefix, block in self._residual_blocks():
            for name, layer in _block_layers(block):
                yield f"{prefix}.{name}", layer
        if self.fc is not None:
            yield "fc", self.fc


def _block_layers(block: BasicBlock | Bottleneck) -> Layers:
    """Yields a block's torch layers.

    With a pool, torch's last convolution is the Sequential (BlurPool, convolution), so it is
    `conv3.1`; and the layers of the shortcut are one index later.
    """
    for i in range(1, block.depth + 1):
        conv, name = getattr(block, f"conv{i}"), f"conv{i}"
        if i == block.depth and block.pool is not None:
            yield from pool_layers(f"{name}.0", block.pool, conv.in_features)
            name = f"{name}.1"
        yield name, conv
        yield f"bn{i}", getattr(block, f"bn{i}")
    if block.se is not None:
        yield "se.fc1", block.se.fc1
        yield "se.fc2", block.se.fc2
    if block.downsample is not None:
        shortcut = block.downsample
        yield from pool_layers("downsample.0", shortcut.pool, shortcut.conv.in_features)
        shift = 0 if shortcut.pool is None else 1
        yield f"downsample.{shift}", shortcut.conv
        yield f"downsample.{shift + 1}", shortcut.bn


for _name, _block, _layers, _options in (
    ("resnet18", BasicBlock, (2, 2, 2, 2), {}),
    ("resnet34", BasicBlock, (3, 4, 6, 3), {}),
    ("resnet50", Bottleneck, (3, 4, 6, 3), {}),
    ("resnet101", Bottleneck, (3, 4, 23, 3), {}),
    ("resnet152", Bottleneck, (3, 8, 36, 3), {}),
    ("resnext50_32x4d", Bottleneck, (3, 4, 6, 3), {"groups": 32, "width_per_group": 4}),
    ("resnext101_32x8d", Bottleneck, (3, 4, 23, 3), {"groups": 32, "width_per_group": 8}),
    ("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), {"width_per_group": 128}),
    ("wide_resnet101_2", Bottleneck, (3, 4, 23, 3), {"width_per_group": 128}),
):
    register_model(_name, partial(ResNet, _block, _layers, **_options), published=True)
