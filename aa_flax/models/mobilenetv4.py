"""MobileNetV4-Conv-M (Qin et al., ECCV 2024), antialiased as in timm: Apache licence 2.0.

All of its strides but the stem's are BlurPools of 3 taps, whose padding is zero:

    conv, stride 2  -  ReLU   ->   conv, stride 1  -  ReLU  -  BlurPool

Its weights are under that licence, too. Source: table 12 of the paper, and timm's
`mobilenetv4_conv_blur_medium`, by its behaviour; the tests compare with it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.registry import register_model
from aa_flax.models.torch_layout import Layers
from aa_flax.nn.blur import BlurPool
from aa_flax.nn.initializers import normal, zeros
from aa_flax.nn.layers import LayerFactory
from aa_flax.nn.pool_registry import subsample

# Kernel sizes of a block's convolutions before the projection (depthwise, expanding, depthwise; 0:
# none), and its expansion.
Row = tuple[int, int, int, int]
# Features of each stage, and its blocks; the first has stride 2.
_MEDIUM = (
    (48, [(0, 3, 0, 4)]),
    (80, [(3, 1, 5, 4), (3, 1, 3, 2)]),
    (
        160,
        [
            *((3, 1, 5, 6), (3, 1, 3, 4), (3, 1, 3, 4), (3, 1, 5, 4), (3, 1, 3, 4)),
            *((3, 1, 0, 4), (0, 1, 0, 2), (3, 1, 0, 4)),
        ],
    ),
    (
        256,
        [
            *((5, 1, 5, 6), (5, 1, 5, 4), (3, 1, 5, 4), (3, 1, 5, 4), (0, 1, 0, 4)),
            *((3, 1, 0, 4), (3, 1, 5, 2), (5, 1, 5, 4), (0, 1, 0, 4), (0, 1, 0, 4), (5, 1, 0, 2)),
        ],
    ),
)


class ConvNorm(nnx.Module):
    """Convolution - BatchNorm [- ReLU], padded so that stride 1 keeps the size."""

    def __init__(
        self,
        make: LayerFactory,
        in_features: int,
        features: int,
        size: int,
        *,
        relu: bool = True,
        **options: int,
    ):
        self.relu = relu
        self.conv = make.conv(in_features, features, size, padding=size // 2, **options)
        self.bn = make.batch_norm(features)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        x = self.bn(self.conv(x))
        return jax.nn.relu(x) if self.relu else x


def _depthwise(make: LayerFactory, features: int, size: int, *, relu: bool = True) -> ConvNorm:
    return ConvNorm(make, features, features, size, groups=features, relu=relu)


class InvertedBottleneck(nnx.Module):
    """[Depthwise] - expand - [depthwise] - [pool] - project, with a shortcut if the shape allows.

    The universal inverted bottleneck of the paper (Sec. 3) where the expanding convolution is 1x1.
    """

    def __init__(
        self,
        make: LayerFactory,
        in_features: int,
        features: int,
        start: int,
        expand: int,
        middle: int,
        expansion: int,
        *,
        stride: int,
    ):
        width = in_features * expansion
        self.has_shortcut = stride == 1 and in_features == features
        self.start = _depthwise(make, in_features, start, relu=False) if start else None
        self.expand = ConvNorm(make, in_features, width, expand)
        self.middle = _depthwise(make, width, middle) if middle else None
        self.pool = make.pool(stride, width)
        self.project = ConvNorm(make, width, features, 1, relu=False)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        y = x if self.start is None else self.start(x)
        y = self.expand(y)
        y = y if self.middle is None else self.middle(y)
        y = self.project(subsample(self.pool, y))  # BlurPool, where a plain model has the stride
        return x + y if self.has_shortcut else y

    def torch_layers(self) -> Layers:
        """Yields the layers by their names in timm's block, which are others if it is fused."""
        if self.expand.conv.kernel_size != (1, 1):
            fused = (self.expand, "conv_exp", "bn1"), (self.project, "conv_pwl", "bn2")
            for block, conv, bn in fused:
                yield conv, block.conv
                yield bn, block.bn
            return
        names = {"dw_start": self.start, "pw_exp": self.expand, "dw_mid": self.middle}
        for name, block in {**names, "pw_proj": self.project}.items():
            if block is not None:
                yield f"{name}.conv", block.conv
                yield f"{name}.bn", block.bn


class MobileNetV4(Classifier):
    """A convolutional MobileNetV4, antialiased as in timm.

    Args:
        stages: features of each stage, and the rows of its blocks.
        num_classes, dtype: options of every model, see `Classifier`.
    """

    last_layer = "classifier"
    _last_layer_init = {"kernel_init": normal(0.01), "bias_init": zeros}  # noqa: RUF012

    def __init__(
        self,
        stages: Sequence[tuple[int, Sequence[Row]]],
        *,
        num_classes: int = 1000,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        pool = partial(BlurPool, 3, padding="zero")
        super().__init__(num_classes=num_classes, pool=pool)
        make = LayerFactory(rngs, dtype, pool)
        in_features = 32
        self.stem = ConvNorm(make, 3, in_features, 3, stride=2)
        self.stages = nnx.List()
        for features, rows in stages:
            stage = nnx.List()
            for i, row in enumerate(rows):
                stride = 2 if i == 0 else 1
                stage.append(InvertedBottleneck(make, in_features, features, *row, stride=stride))
                in_features = features
            self.stages.append(stage)
        self.last = ConvNorm(make, in_features, 960, 1)
        self.head = ConvNorm(make, 960, 1280, 1)
        self.classifier = self._new_last_layer(1280, self.num_classes, dtype=dtype, rngs=rngs)

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self.stem
        yield from self._bottlenecks()
        yield "last", self.last

    def _bottlenecks(self) -> Iterator[tuple[str, InvertedBottleneck]]:
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage):
                yield f"stages.{i}.{j}", block

    def torch_layers(self) -> Layers:
        yield "conv_stem", self.stem.conv
        yield "bn1", self.stem.bn
        for prefix, block in self._bottlenecks():
            for name, layer in block.torch_layers():
                yield f"{prefix.replace('stages', 'blocks')}.{name}", layer
        last = f"blocks.{len(self.stages)}.0"
        yield f"{last}.conv", self.last.conv
        yield f"{last}.bn1", self.last.bn
        yield "conv_head", self.head.conv
        yield "norm_head", self.head.bn
        if self.classifier is not None:
            yield "classifier", self.classifier

    def forward_head(
        self, features: Float[Array, "N h w 960"], pre_logits: bool = False
    ) -> Float[Array, "N classes"]:
        means = features.mean((1, 2), keepdims=True)
        return self._classified(self.head(means)[:, 0, 0], pre_logits)


register_model(
    "mobilenetv4_conv_blur_medium",
    partial(MobileNetV4, _MEDIUM),
    config=ModelConfig(input_size=256, resize_size=256, interpolation="bicubic"),
    hub="timm/mobilenetv4_conv_blur_medium.e500_r224_in1k",
    licence="apache-2.0",
)
