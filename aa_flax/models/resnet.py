"""ResNet (He et al. 2016), ResNeXt (Xie et al. 2017) and Wide ResNet, plain and antialiased.

With `filter_size=None` these are torchvision's nets. With a filter size every strided layer runs
densely and is followed by BlurPool (Zhang, ICML 2019, Sec. 3.2, figure 2), or another pool in its
place:

    max pool, stride 2          ->  max pool, stride 1  -  BlurPool, stride 2
    conv, stride 2  -  ReLU     ->  conv, stride 1  -  ReLU  -  BlurPool, stride 2
    1x1 conv, stride 2          ->  BlurPool, stride 2  -  1x1 conv       (the shortcut)

The antialiased stem's max pool has a window of 2, not 3, as in the original, whatever the pool.
BlurPool has no variables, so a plain net and its antialiased one have the same state tree.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError, boolean, integer, integers
from aa_flax.initialisers import ones, zeros
from aa_flax.layers import BatchNorm, conv2d
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import register_model
from aa_flax.models.stems import stem_convolution
from aa_flax.models.torch_layout import Layers, pool_layers
from aa_flax.ops import materialised, max_pool
from aa_flax.pools.registry import PoolFactory, decide, make_pool, pool_factory, subsample


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; a stride acts after the first."""

    expansion = 1

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int,
        dilation: int,
        next_dilation: int,
        groups: int,
        base_width: int,
        pool: PoolFactory | None,
        zero_init_residual: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        if groups != 1 or base_width != 64:
            raise InputError(f"BasicBlock has one group of width 64, got {groups} of {base_width}")
        self.pool = make_pool(pool, stride, features=features, rngs=rngs)
        conv_stride = stride if self.pool is None else 1
        last_scale = zeros if zero_init_residual else ones
        self.conv1 = conv2d(
            in_features,
            features,
            3,
            stride=conv_stride,
            padding=dilation,
            dilation=dilation,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn1 = BatchNorm(features, rngs=rngs)
        self.conv2 = conv2d(
            features,
            features,
            3,
            padding=next_dilation,
            dilation=next_dilation,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn2 = BatchNorm(features, scale_init=last_scale, rngs=rngs)
        self.downsample = _downsample(
            in_features, features, stride=stride, pool=pool, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        choice = None
        if self.pool is not None:
            choice = decide(self.pool, y)
            y = subsample(self.pool, y, choice)
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x, choice)
        return materialised(jax.nn.relu(y + shortcut))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions; a stride acts after the 3x3."""

    expansion = 4

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int,
        dilation: int,
        next_dilation: int,
        groups: int,
        base_width: int,
        pool: PoolFactory | None,
        zero_init_residual: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        del next_dilation  # has one 3x3 convolution, dilated as those before
        width = features * base_width // 64 * groups
        out_features = features * self.expansion
        self.pool = make_pool(pool, stride, features=width, rngs=rngs)
        last_scale = zeros if zero_init_residual else ones
        self.conv1 = conv2d(in_features, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = conv2d(
            width,
            width,
            3,
            stride=stride if self.pool is None else 1,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.conv3 = conv2d(width, out_features, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(out_features, scale_init=last_scale, rngs=rngs)
        self.downsample = _downsample(
            in_features, out_features, stride=stride, pool=pool, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        choice = None
        if self.pool is not None:
            choice = decide(self.pool, y)
            y = subsample(self.pool, y, choice)
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x, choice)
        return materialised(jax.nn.relu(y + shortcut))


class Downsample(nnx.Module):
    """The shortcut where a block changes size: [pool] - 1x1 convolution - BatchNorm."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        stride: int,
        pool: PoolFactory | None,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.pool = make_pool(pool, stride, features=in_features, rngs=rngs, follows=True)
        conv_stride = stride if self.pool is None else 1
        self.conv = conv2d(in_features, out_features, 1, stride=conv_stride, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"], choice: Any) -> Float[Array, "N h w c"]:
        """`choice` is what the main branch's pool decided; None: nothing."""
        if self.pool is not None:
            x = subsample(self.pool, x, choice)
        return self.bn(self.conv(x))


def _downsample(in_features: int, out_features: int, *, stride: int, **options):
    """The shortcut's layers; None: it is the identity."""
    if stride == 1 and in_features == out_features:
        return None
    return Downsample(in_features, out_features, stride=stride, **options)


def _block_layers(block: BasicBlock | Bottleneck) -> Layers:
    """A block's torch layers: behind a pool stand its last convolution, as `conv3.1`, and the
    shortcut's layers, one place later."""
    count = 2 if isinstance(block, BasicBlock) else 3
    for i in range(1, count + 1):
        conv, name = getattr(block, f"conv{i}"), f"conv{i}"
        if i == count and block.pool is not None:
            yield from pool_layers(f"{name}.0", block.pool, conv.in_features)
            name = f"{name}.1"
        yield name, conv
        yield f"bn{i}", getattr(block, f"bn{i}")
    if block.downsample is not None:
        shortcut = block.downsample
        yield from pool_layers("downsample.0", shortcut.pool, shortcut.conv.in_features)
        shift = 0 if shortcut.pool is None else 1
        yield f"downsample.{shift}", shortcut.conv
        yield f"downsample.{shift + 1}", shortcut.bn


class ResNet(Classifier):
    """A residual net for images `(N, H, W, 3)`, plain or antialiased.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: number of blocks in each of the four stages.
        num_classes: outputs of the last layer; 0: none, the net gives what comes before it.
        filter_size: taps of every BlurPool, 1 to 7 in the published nets; None: torchvision's net.
        pool: what subsamples in BlurPool's place, a name of `aa_flax.list_pools()` or a function
            `stride -> module` (see `aa_flax.pools.registry`); instead of a filter size.
        groups, width_per_group: ResNeXt's cardinality, and the width of a group at 64 features.
        pool_only: antialias the stem's max pool, not its convolution (as all published weights);
            False runs the stem's convolution densely too, at four times its cost.
        output_stride: how many times smaller than the images the last map is: 32, or 16 or 8 with
            dilated convolutions in place of the last stride or two, whose pools go with them. Half
            and a quarter with `stem="small"`, which leaves out the strides of the stem.
        stem: "small" is for images such as CIFAR's 32x32: a 3x3 convolution of stride 1 and no max
            pool, so that the last map is an eighth of the image, not a thirty-second.
        zero_init_residual: start each residual branch at zero (Goyal et al. 2017).
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
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
        stem: Literal["imagenet", "small"] = "imagenet",
        zero_init_residual: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_classes=num_classes, filter_size=filter_size, pool=pool)
        self.pool_only = boolean("pool_only", pool_only)
        if not self.is_antialiased and not pool_only:
            raise InputError(
                "pool_only=False needs an antialiased net: give a filter_size or a pool"
            )
        dilated = _dilated_stages(output_stride)
        self.output_stride = int(output_stride)
        layers = integers("layers", layers, count=4)
        factory = pool_factory(filter_size, pool)
        options = {
            "groups": integer("groups", groups, least=1),
            "base_width": integer("width_per_group", width_per_group, least=1),
            "zero_init_residual": boolean("zero_init_residual", zero_init_residual),
            "pool": factory,
            "dtype": dtype,
            "rngs": rngs,
        }
        conv = stem_convolution(stem, pool_only=self.pool_only)
        self.is_small = conv.reduction == 1
        self.conv1 = conv2d(
            3, 64, conv.size, stride=conv.stride, padding=conv.size // 2, dtype=dtype, rngs=rngs
        )
        self.bn1 = BatchNorm(64, rngs=rngs)
        carried = conv.reduction // conv.stride
        self.conv_pool = make_pool(factory, carried, features=64, rngs=rngs)
        pool_stride = 1 if self.is_small else 2
        self.pool = make_pool(factory, pool_stride, features=64, rngs=rngs)

        in_features, dilation = 64, 1
        stages = []
        for features, count, stride, dilate in zip(
            (64, 128, 256, 512),
            layers,
            (1, 2, 2, 2),
            (False, *dilated),
            strict=True,
        ):
            stage = []
            first_dilation = dilation
            if dilate:
                dilation, stride = dilation * stride, 1
            for i in range(count):
                stage.append(
                    block(
                        in_features,
                        features,
                        stride=stride if i == 0 else 1,
                        dilation=first_dilation if i == 0 else dilation,
                        next_dilation=dilation,
                        **options,
                    )
                )
                in_features = features * block.expansion
            stages.append(nnx.List(stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = self._new_last_layer(in_features, self.num_classes, dtype=dtype, rngs=rngs)

    def stem(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w 64"]:
        """First convolution and pooling: a quarter of the resolution, or all of it if small."""
        x = self._stem_conv(x)
        return x if self.is_small else self._stem_pool(x)

    def _stem_conv(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w 64"]:
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        return x if self.conv_pool is None else subsample(self.conv_pool, x)

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

    def level_ends(self) -> Sequence[str]:
        """The stem's convolution, and each stage whether it has a stride or a dilation."""
        last = {name.partition(".")[0]: name for name, _ in self._residual_blocks()}
        return ["stem", *last.values()]

    def _residual_blocks(self) -> Iterator[tuple[str, BasicBlock | Bottleneck]]:
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for i, block in enumerate(getattr(self, name)):
                yield f"{name}.{i}", block

    def torch_layers(self) -> Layers:
        yield "conv1", self.conv1
        yield "bn1", self.bn1
        yield from pool_layers("maxpool.0", self.conv_pool, 64)
        yield from pool_layers(f"maxpool.{1 if self.pool_only else 2}", self.pool, 64)
        for place, block in self._residual_blocks():
            for name, layer in _block_layers(block):
                yield f"{place}.{name}", layer
        if self.fc is not None:
            yield "fc", self.fc


_DILATED_STAGES = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}


def _dilated_stages(output_stride: object) -> tuple[bool, bool, bool]:
    """Whether stages 2, 3 and 4 are dilated."""
    if not isinstance(output_stride, bool):
        for stride, stages in _DILATED_STAGES.items():
            if output_stride == stride:  # whatever kind of integer it is
                return stages
    raise InputError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")


_GROUPS_32X4 = {"groups": 32, "width_per_group": 4}
_GROUPS_32X8 = {"groups": 32, "width_per_group": 8}
_WIDE = {"width_per_group": 128}

for _name, _build in {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": partial(ResNet, Bottleneck, (3, 4, 6, 3), **_GROUPS_32X4),
    "resnext101_32x8d": partial(ResNet, Bottleneck, (3, 4, 23, 3), **_GROUPS_32X8),
    "wide_resnet50_2": partial(ResNet, Bottleneck, (3, 4, 6, 3), **_WIDE),
    "wide_resnet101_2": partial(ResNet, Bottleneck, (3, 4, 23, 3), **_WIDE),
}.items():
    register_model(_name, _build, published=True)
