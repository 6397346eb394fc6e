"""ResNet (He et al. 2016), ResNeXt (Xie et al. 2017) and Wide ResNet, plain and antialiased.

With `filter_size=None` these are torchvision's nets. With a filter size every strided layer runs
densely and is followed by BlurPool (Zhang, ICML 2019, Sec. 3.2, figure 2):

    max pool, stride 2          ->  max pool, stride 1  -  BlurPool, stride 2
    conv, stride 2  -  ReLU     ->  conv, stride 1  -  ReLU  -  BlurPool, stride 2
    1x1 conv, stride 2          ->  BlurPool, stride 2  -  1x1 conv       (the shortcut)

BlurPool has no variables, so a plain net and its antialiased one have the same state tree.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.layers import BatchNorm, conv2d, linear
from aa_flax.models.classifier import Classifier
from aa_flax.ops import max_pool
from aa_flax.pools.blur import BlurPool


def _blur(filter_size: int | None, stride: int) -> BlurPool | None:
    """What carries a layer's stride in an antialiased net; None: the layer strides itself."""
    return None if filter_size is None or stride == 1 else BlurPool(filter_size, stride)


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
        groups: int,
        base_width: int,
        filter_size: int | None,
        zero_init_residual: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        if groups != 1 or base_width != 64:
            raise InputError(f"BasicBlock has one group of width 64, got {groups} of {base_width}")
        if dilation != 1:
            raise InputError("BasicBlock has no dilation; use a net of bottleneck blocks")
        self.blur = _blur(filter_size, stride)
        conv_stride = stride if self.blur is None else 1
        last_scale = nnx.initializers.zeros if zero_init_residual else nnx.initializers.ones
        self.conv1 = conv2d(
            in_features, features, 3, stride=conv_stride, padding=1, dtype=dtype, rngs=rngs
        )
        self.bn1 = BatchNorm(features, rngs=rngs)
        self.conv2 = conv2d(features, features, 3, padding=1, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(features, scale_init=last_scale, rngs=rngs)
        self.downsample = _downsample(in_features, features, stride, filter_size, dtype, rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        if self.blur is not None:
            y = self.blur(y)
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return jax.nn.relu(y + shortcut)


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
        groups: int,
        base_width: int,
        filter_size: int | None,
        zero_init_residual: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        width = features * base_width // 64 * groups
        out_features = features * self.expansion
        self.blur = _blur(filter_size, stride)
        last_scale = nnx.initializers.zeros if zero_init_residual else nnx.initializers.ones
        self.conv1 = conv2d(in_features, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = conv2d(
            width,
            width,
            3,
            stride=stride if self.blur is None else 1,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.conv3 = conv2d(width, out_features, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(out_features, scale_init=last_scale, rngs=rngs)
        self.downsample = _downsample(in_features, out_features, stride, filter_size, dtype, rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        if self.blur is not None:
            y = self.blur(y)
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return jax.nn.relu(y + shortcut)


class Downsample(nnx.Module):
    """The shortcut where a block changes size: [BlurPool] - 1x1 convolution - BatchNorm."""

    def __init__(self, in_features, out_features, stride, filter_size, dtype, rngs):
        self.blur = _blur(filter_size, stride)
        conv_stride = stride if self.blur is None else 1
        self.conv = conv2d(in_features, out_features, 1, stride=conv_stride, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        if self.blur is not None:
            x = self.blur(x)
        return self.bn(self.conv(x))


def _downsample(in_features, out_features, stride, filter_size, dtype, rngs) -> Downsample | None:
    if stride == 1 and in_features == out_features:
        return None
    return Downsample(in_features, out_features, stride, filter_size, dtype, rngs)


class ResNet(Classifier):
    """A residual net for images `(N, H, W, 3)`, plain or antialiased.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: number of blocks in each of the four stages.
        num_classes: outputs of the last layer.
        filter_size: taps of every BlurPool, 1 to 7 in the published nets; None: torchvision's net.
        groups, width_per_group: ResNeXt's cardinality, and the width of a group at 64 features.
        pool_only: antialias the stem's max pool, not its convolution (as all published weights);
            False runs the stem's convolution densely too, at four times its cost.
        replace_stride_with_dilation: for stages 2 to 4, whether the stride becomes a dilation
            (its BlurPool goes with it).
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
        groups: int = 1,
        width_per_group: int = 64,
        pool_only: bool = True,
        replace_stride_with_dilation: Sequence[bool] = (False, False, False),
        zero_init_residual: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        if len(replace_stride_with_dilation) != 3:
            raise InputError(
                "replace_stride_with_dilation has one entry for each of stages 2, 3 and 4, got "
                f"{tuple(replace_stride_with_dilation)}"
            )
        if filter_size is None and not pool_only:
            raise InputError("pool_only=False needs an antialiased net: give a filter_size")
        self.filter_size = filter_size
        self.pool_only = pool_only
        self.conv1 = conv2d(
            3, 64, 7, stride=2 if pool_only else 1, padding=3, dtype=dtype, rngs=rngs
        )
        self.bn1 = BatchNorm(64, rngs=rngs)
        self.blur = _blur(filter_size, stride=2)

        in_features, dilation = 64, 1
        stages = []
        for features, count, stride, dilate in zip(
            (64, 128, 256, 512),
            layers,
            (1, 2, 2, 2),
            (False, *replace_stride_with_dilation),
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
                        groups=groups,
                        base_width=width_per_group,
                        filter_size=filter_size,
                        zero_init_residual=zero_init_residual,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                in_features = features * block.expansion
            stages.append(nnx.List(stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = linear(in_features, num_classes, dtype=dtype, rngs=rngs)

    def stem(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w 64"]:
        """First convolution and pooling: a quarter of the resolution."""
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        if self.blur is None:
            return max_pool(x, 3, stride=2, padding=1)
        if not self.pool_only:
            x = self.blur(x)
        return self.blur(max_pool(x, 2, stride=1))

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self.stem
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for i, block in enumerate(getattr(self, name)):
                yield f"{name}.{i}", block

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        return self.fc(self.features(x).mean((1, 2)))
