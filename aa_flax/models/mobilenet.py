"""MobileNetV2 (Sandler et al. 2018), plain and antialiased.

With `filter_size=None` this is torchvision's model. With a filter size (Zhang, ICML 2019, Sec. 3.2)
every strided depthwise convolution runs at stride 1 and BlurPool, or another pool, follows it; the
stem keeps its stride:

    depthwise conv, stride 2  -  ReLU6   ->  depthwise conv, stride 1  -  ReLU6  -  BlurPool
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import fraction, real
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import register_model
from aa_flax.models.stems import is_small
from aa_flax.models.torch_layout import Layers, pool_entry
from aa_flax.nn.initializers import normal, zeros
from aa_flax.nn.layers import LayerFactory
from aa_flax.nn.pool_registry import PoolFactory, pool_factory, subsample

# Rows of table 2 of the paper: expansion, features, blocks, stride of the first block.
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

    def __init__(
        self, make: LayerFactory, in_features: int, features: int, size: int, **options: int
    ):
        self.conv = make.conv(in_features, features, size, padding=size // 2, **options)
        self.bn = make.batch_norm(features)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        return jax.nn.relu6(self.bn(self.conv(x)))


class InvertedResidual(nnx.Module):
    """[Expand] - depthwise 3x3 - [pool] - project, around a shortcut where the shape allows."""

    def __init__(
        self, make: LayerFactory, in_features: int, features: int, *, expansion: int, stride: int
    ):
        width = in_features * expansion
        self.has_shortcut = stride == 1 and in_features == features
        self.expand = None if expansion == 1 else ConvBlock(make, in_features, width, 1)
        self.pool = make.pool(stride, width)
        conv_stride = stride if self.pool is None else 1
        self.depthwise = ConvBlock(make, width, width, 3, stride=conv_stride, groups=width)
        self.project = make.conv(width, features, 1)
        self.bn = make.batch_norm(features)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = x if self.expand is None else self.expand(x)
        y = subsample(self.pool, self.depthwise(y))  # BlurPool, where torchvision's has the stride
        y = self.bn(self.project(y))
        return x + y if self.has_shortcut else y

    def torch_layers(self) -> Layers:
        """Yields the layers by their index in torch's block, a Sequential."""
        conv_blocks = [block for block in (self.expand, self.depthwise) if block is not None]
        for i, block in enumerate(conv_blocks):
            yield f"{i}.0", block.conv
            yield f"{i}.1", block.bn
        rest = [*pool_entry(self.pool, self.project.in_features), self.project, self.bn]
        for i, layer in enumerate(rest, len(conv_blocks)):
            if layer is not None:
                yield f"{i}", layer


class MobileNetV2(Classifier):
    """Seventeen inverted residual blocks, plain or antialiased.

    Args:
        num_classes, filter_size, pool, dtype: options of every model, see `Classifier`.
        width_mult: factor on the number of features, at least 1/16, rounded down as in the
            antialiased original (torchvision rounds to multiples of 8: widths other than 1 differ
            from its models).
        stem: "small" is for images such as CIFAR's 32x32: the first convolution has stride 1, so
            that the last map is a sixteenth of the image, not a thirty-second.
        dropout: fraction of values dropped before the classifier; default 0.2 for the plain model
            and none for the antialiased one, as in the originals.
    """

    last_layer = "classifier"
    _last_layer_init = {"kernel_init": normal(0.01), "bias_init": zeros}  # noqa: RUF012

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        filter_size: int | None = None,
        pool: str | PoolFactory | None = None,
        width_mult: float = 1.0,
        stem: Literal["imagenet", "small"] = "imagenet",
        dropout: float | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_classes=num_classes, filter_size=filter_size, pool=pool)
        width_mult = real("width_mult", width_mult, least=1 / 16)  # 16 features become one
        if dropout is None:
            dropout = 0.0 if self.is_antialiased else 0.2
        make = LayerFactory(rngs, dtype, pool_factory(filter_size, pool))
        in_features = int(32 * width_mult)
        last_features = int(1280 * max(1.0, width_mult))
        self.stem = ConvBlock(make, 3, in_features, 3, stride=1 if is_small(stem) else 2)
        blocks = []
        for expansion, base_features, count, stride in _STAGES:
            new_block = partial(InvertedResidual, make, expansion=expansion)
            features = int(base_features * width_mult)
            for _ in range(count):
                blocks.append(new_block(in_features, features, stride=stride))
                in_features, stride = features, 1
        self.blocks = nnx.List(blocks)
        self.head = ConvBlock(make, in_features, last_features, 1)
        self.dropout = nnx.Dropout(fraction("dropout", dropout), rngs=rngs)
        last = {"dtype": dtype, "rngs": rngs}
        self.classifier = self._new_last_layer(last_features, self.num_classes, **last)

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield from self._feature_blocks()
        yield "head", self.head

    def feature_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self.stem
        for i, block in enumerate(self.blocks):
            yield f"blocks.{i}", block

    def torch_layers(self) -> Layers:
        yield "features.0.0", self.stem.conv
        yield "features.0.1", self.stem.bn
        for i, block in enumerate(self.blocks, 1):
            for name, layer in block.torch_layers():
                yield f"features.{i}.conv.{name}", layer
        last = len(self.blocks) + 1
        yield f"features.{last}.0", self.head.conv
        yield f"features.{last}.1", self.head.bn
        if self.classifier is not None:
            yield f"classifier.{0 if self.is_antialiased else 1}", self.classifier

    def forward_head(
        self, features: Float[Array, "N h w 1280"], pre_logits: bool = False
    ) -> Float[Array, "N classes"]:
        return self._classified(self.dropout(features.mean((1, 2))), pre_logits)


register_model("mobilenet_v2", MobileNetV2, published=True)
