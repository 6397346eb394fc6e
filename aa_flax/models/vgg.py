"""VGG (Simonyan and Zisserman 2015), with and without batch normalisation, plain and antialiased.

With `filter_size=None` these are torchvision's models. With a filter size (Zhang, ICML 2019,
Sec. 3.2), or another pool instead of BlurPool, each of the five max pools, the only strided layers,
becomes

    max pool, stride 2          ->  max pool, stride 1  -  BlurPool, stride 2
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import boolean, fraction, integers
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import register_model
from aa_flax.models.torch_layout import (
    DROPOUT,
    MAX_POOL,
    RELU,
    Flattened,
    Layer,
    Layers,
    pool_entry,
    sequential,
)
from aa_flax.nn.initializers import normal, zeros
from aa_flax.nn.layers import LayerFactory, strided_max_pool
from aa_flax.nn.pool_registry import PoolFactory, pool_factory
from aa_flax.ops import adaptive_avg_pool

_LINEAR_INIT = {"kernel_init": normal(0.01), "bias_init": zeros}


class ConvBlock(nnx.Module):
    """3x3 convolution - [BatchNorm] - ReLU. The convolution has a bias either way."""

    def __init__(self, make: LayerFactory, in_features: int, features: int, batch_norm: bool):
        self.conv = make.conv(in_features, features, 3, padding=1, use_bias=True)
        self.bn = make.batch_norm(features) if batch_norm else None

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W c"]:
        x = self.conv(x)
        return jax.nn.relu(x if self.bn is None else self.bn(x))


class VGG(Classifier):
    """Five stages of 3x3 convolutions and three linear layers, plain or antialiased.

    Args:
        layers: number of convolutions in each of the five stages.
        batch_norm: normalise after every convolution.
        num_classes, filter_size, pool, dtype: options of every model, see `Classifier`.
        dropout: fraction of values dropped after each of the first two linear layers.
    """

    last_layer = "fc3"
    _last_layer_init = _LINEAR_INIT

    def __init__(
        self,
        layers: Sequence[int],
        *,
        batch_norm: bool = False,
        num_classes: int = 1000,
        filter_size: int | None = None,
        pool: str | PoolFactory | None = None,
        dropout: float = 0.5,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_classes=num_classes, filter_size=filter_size, pool=pool)
        batch_norm = boolean("batch_norm", batch_norm)
        dropout = fraction("dropout", dropout)
        layers = integers("layers", layers, count=5)
        make = LayerFactory(rngs, dtype, pool_factory(filter_size, pool))
        in_features, stages, pools = 3, [], []
        for features, count in zip((64, 128, 256, 512, 512), layers, strict=True):
            stage = []
            for _ in range(count):
                stage.append(ConvBlock(make, in_features, features, batch_norm))
                in_features = features
            stages.append(nnx.List(stage))
            pools.append(make.pool(2, features))
        self.stages, self.pools = nnx.List(stages), nnx.List(pools)
        self.fc1 = make.linear(7 * 7 * 512, 4096, **_LINEAR_INIT)
        self.dropout1 = nnx.Dropout(dropout, rngs=rngs)
        self.fc2 = make.linear(4096, 4096, **_LINEAR_INIT)
        self.dropout2 = nnx.Dropout(dropout, rngs=rngs)
        self.fc3 = self._new_last_layer(4096, self.num_classes, dtype=dtype, rngs=rngs)

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        for i, (stage, pool) in enumerate(zip(self.stages, self.pools, strict=True), 1):
            for j, block in enumerate(stage, 1):
                yield f"conv{i}_{j}", block
            yield f"pool{i}", partial(strided_max_pool, pool, window=2)

    def torch_layers(self) -> Layers:
        features: list[Layer | None] = []
        for stage, pool in zip(self.stages, self.pools, strict=True):
            for block in stage:
                features += [block.conv, *([] if block.bn is None else [block.bn]), RELU]
            features += [MAX_POOL, *pool_entry(pool, stage[-1].conv.out_features)]
        yield from sequential("features", features)
        first = Flattened(self.fc1, 7, 7)
        classifier = [first, RELU, DROPOUT, self.fc2, RELU, DROPOUT, self.fc3]
        yield from sequential("classifier", classifier)

    def forward_head(
        self, features: Float[Array, "N h w 512"], pre_logits: bool = False
    ) -> Float[Array, "N classes"]:
        x = adaptive_avg_pool(features, 7).reshape(features.shape[0], self.fc1.in_features)
        x = self.dropout1(jax.nn.relu(self.fc1(x)))
        x = self.dropout2(jax.nn.relu(self.fc2(x)))
        return self._classified(x, pre_logits)


for _name, _layers in {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}.items():
    register_model(_name, partial(VGG, _layers), published=True)
    register_model(f"{_name}_bn", partial(VGG, _layers, batch_norm=True), published=True)
