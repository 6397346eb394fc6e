"""MobileNetV2 (Sandler et al. 2018), plain and antialiased.

With `filter_size=None` this is torchvision's net. With a filter size (Zhang, ICML 2019, Sec. 3.2)
every strided block runs densely and is followed by BlurPool, or another pool in its place; the stem
keeps its stride:

    depthwise conv, stride 2  -  ReLU6   ->  depthwise conv, stride 1  -  ReLU6  -  BlurPool
"""

from collections.abc import Callable, Iterator
from typing import Literal

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import fraction, real
from aa_flax.initialisers import normal, zeros
from aa_flax.layers import BatchNorm, conv2d, linear
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import register_model
from aa_flax.models.stems import is_small
from aa_flax.models.torch_layout import Layers, pool_layers
from aa_flax.pools.registry import PoolFactory, make_pool, pool_factory, subsample

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

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
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
    """[Expand] - depthwise 3x3 - [pool] - project, around a shortcut where the shape allows."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        expansion: int,
        stride: int,
        pool: PoolFactory | None,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        width = in_features * expansion
        self.has_shortcut = stride == 1 and in_features == features
        self.expand = (
            None if expansion == 1 else ConvBlock(in_features, width, 1, dtype=dtype, rngs=rngs)
        )
        self.pool = make_pool(pool, stride, features=width, rngs=rngs)
        conv_stride = stride if self.pool is None else 1
        self.depthwise = ConvBlock(
            width, width, 3, stride=conv_stride, groups=width, dtype=dtype, rngs=rngs
        )
        self.project = conv2d(width, features, 1, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(features, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        if self.pool is not None:
            y = subsample(self.pool, y)
        y = self.bn(self.project(y))
        return x + y if self.has_shortcut else y

    def torch_layers(self) -> Layers:
        """By their place in torch's block."""
        place = 0
        for conv_block in (self.expand, self.depthwise):
            if conv_block is not None:
                yield f"{place}.0", conv_block.conv
                yield f"{place}.1", conv_block.bn
                place += 1
        if self.pool is not None:
            yield from pool_layers(f"{place}", self.pool, self.project.in_features)
            place += 1
        yield f"{place}", self.project
        yield f"{place + 1}", self.bn


class MobileNetV2(Classifier):
    """Seventeen inverted residual blocks for images `(N, H, W, 3)`, plain or antialiased.

    Args:
        num_classes: outputs of the last layer; 0: none, the net gives what comes before it.
        filter_size: taps of every BlurPool, 1 to 7 in the published nets; None: torchvision's net.
        pool: what subsamples in BlurPool's place, a name of `aa_flax.list_pools()` or a function
            `stride -> module` (see `aa_flax.pools.registry`); instead of a filter size.
        width_mult: factor on the number of features, at least 1/16, rounded down as in the
            antialiased original (torchvision rounds to multiples of 8: other widths than 1 differ
            from its nets).
        stem: "small" is for images such as CIFAR's 32x32: the first convolution has stride 1, so
            that the last map is a sixteenth of the image, not a thirty-second.
        dropout: share of the values dropped before the classifier; default 0.2 for the plain net
            and none for the antialiased one, as in the originals.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
    """

    last_layer = "classifier"

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
        width_mult = real("width_mult", width_mult, least=1 / 16)  # of 16 features, one
        if dropout is None:
            dropout = 0.0 if self.is_antialiased else 0.2
        factory = pool_factory(filter_size, pool)
        in_features = int(32 * width_mult)
        last_features = int(1280 * max(1.0, width_mult))
        stride = 1 if is_small(stem) else 2
        self.stem = ConvBlock(3, in_features, 3, stride=stride, dtype=dtype, rngs=rngs)
        blocks = []
        for expansion, base_features, count, first_stride in _STAGES:
            features = int(base_features * width_mult)
            for i in range(count):
                blocks.append(
                    InvertedResidual(
                        in_features,
                        features,
                        expansion=expansion,
                        stride=first_stride if i == 0 else 1,
                        pool=factory,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                in_features = features
        self.blocks = nnx.List(blocks)
        self.head = ConvBlock(in_features, last_features, 1, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(fraction("dropout", dropout), rngs=rngs)
        self.classifier = self._new_last_layer(
            last_features, self.num_classes, dtype=dtype, rngs=rngs
        )

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

    def _new_last_layer(
        self, in_features: int, num_classes: int | None, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> nnx.Linear | None:
        if not num_classes:
            return None
        return linear(
            in_features,
            num_classes,
            kernel_init=normal(0.01),
            bias_init=zeros,
            dtype=dtype,
            rngs=rngs,
        )


register_model("mobilenet_v2", MobileNetV2, published=True)
