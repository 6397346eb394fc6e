"""MobileNetV2 (Sandler et al. 2018), plain and antialiased.

With `filter_size=None` this is torchvision's net. With a filter size (Zhang, ICML 2019, Sec. 3.2)
every strided block runs densely and is followed by BlurPool; the stem keeps its stride:

    depthwise conv, stride 2  -  ReLU6   ->  depthwise conv, stride 1  -  ReLU6  -  BlurPool
"""

from collections.abc import Callable, Iterator

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.layers import BatchNorm, conv2d, linear
from aa_flax.models.classifier import Classifier
from aa_flax.pools.blur import BlurPool

# Rows of the paper's table 2: expansion, features, blocks, stride of the first.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ConvBlock(nnx.Module):
    """Convolution - BatchNorm - ReLU6, padded so that stride 1 keeps the size."""

    def __init__(self, in_features, features, kernel_size, *, stride=1, groups=1, dtype=None, rngs):
        self.conv = conv2d(
            in_features,
            features,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = BatchNorm(features, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        return jax.nn.relu6(self.bn(self.conv(x)))


class InvertedResidual(nnx.Module):
    """[Expand] - depthwise 3x3 - [BlurPool] - project, around a shortcut where the shape allows."""

    def __init__(self, in_features, features, expansion, stride, filter_size, dtype, rngs):
        width = in_features * expansion
        self.has_shortcut = stride == 1 and in_features == features
        self.expand = (
            None if expansion == 1 else ConvBlock(in_features, width, 1, dtype=dtype, rngs=rngs)
        )
        self.blur = None if filter_size is None or stride == 1 else BlurPool(filter_size, stride)
        conv_stride = stride if self.blur is None else 1
        self.depthwise = ConvBlock(
            width, width, 3, stride=conv_stride, groups=width, dtype=dtype, rngs=rngs
        )
        self.project = conv2d(width, features, 1, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(features, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        if self.blur is not None:
            y = self.blur(y)
        y = self.bn(self.project(y))
        return x + y if self.has_shortcut else y


class MobileNetV2(Classifier):
    """Seventeen inverted residual blocks for images `(N, H, W, 3)`, plain or antialiased.

    Args:
        num_classes: outputs of the last layer.
        filter_size: taps of every BlurPool, 1 to 7 in the published nets; None: torchvision's net.
        width_mult: factor on the number of features, rounded down as in the antialiased original
            (torchvision rounds to multiples of 8: other widths than 1 differ from its nets).
        dropout: share of the values dropped before the classifier; default 0.2 for the plain net
            and none for the antialiased one, as in the originals.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        filter_size: int | None = None,
        width_mult: float = 1.0,
        dropout: float | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.filter_size = filter_size
        in_features = int(32 * width_mult)
        last_features = int(1280 * max(1.0, width_mult))
        self.stem = ConvBlock(3, in_features, 3, stride=2, dtype=dtype, rngs=rngs)
        blocks = []
        for expansion, base_features, count, first_stride in _STAGES:
            features = int(base_features * width_mult)
            for i in range(count):
                stride = first_stride if i == 0 else 1
                blocks.append(
                    InvertedResidual(
                        in_features, features, expansion, stride, filter_size, dtype, rngs
                    )
                )
                in_features = features
        self.blocks = nnx.List(blocks)
        self.head = ConvBlock(in_features, last_features, 1, dtype=dtype, rngs=rngs)
        if dropout is None:
            dropout = 0.2 if filter_size is None else 0.0
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classifier = linear(
            last_features,
            num_classes,
            kernel_init=nnx.initializers.normal(0.01),
            bias_init=nnx.initializers.zeros,
            dtype=dtype,
            rngs=rngs,
        )

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self.stem
        for i, block in enumerate(self.blocks):
            yield f"blocks.{i}", block
        yield "head", self.head

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        return self.classifier(self.dropout(self.features(x).mean((1, 2))))
