"""DenseNet (Huang et al. 2017), plain and antialiased.

With `filter_size=None` these are torchvision's models. With a filter size (Zhang, ICML 2019,
Sec. 3.2), or another pool instead of BlurPool:

    max pool, stride 2          ->  max pool, stride 1  -  BlurPool, stride 2
    average pool, stride 2      ->  BlurPool, stride 2     (itself a weighted average)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import boolean, fraction, integer, integers
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import register_model
from aa_flax.models.remat import rematerialised
from aa_flax.models.stems import DeepStem, stem_convolution
from aa_flax.models.torch_layout import Layers, pool_layers
from aa_flax.nn.initializers import kaiming_normal_fan_in, zeros
from aa_flax.nn.layers import LayerFactory, relu_after, strided_max_pool
from aa_flax.nn.pool_registry import PoolFactory, pool_factory, subsample
from aa_flax.ops import avg_pool, materialised


class DenseLayer(nnx.Module):
    """BN - ReLU - 1x1 convolution - BN - ReLU - 3x3 convolution, on all feature maps so far."""

    def __init__(
        self, make: LayerFactory, in_features: int, growth_rate: int, width: int, drop_rate: float
    ):
        self.norm1 = make.batch_norm(in_features)
        self.conv1 = make.conv(in_features, width, 1)
        self.norm2 = make.batch_norm(width)
        self.conv2 = make.conv(width, growth_rate, 3, padding=1)
        self.dropout = nnx.Dropout(drop_rate, rngs=make.rngs if drop_rate else None)

    def __call__(self, maps: Sequence[Float[Array, "N H W _"]]) -> Float[Array, "N H W growth"]:
        x = materialised(jnp.concatenate(maps, axis=-1))
        x = self.conv1(jax.nn.relu(self.norm1(x)))
        x = self.conv2(jax.nn.relu(self.norm2(x)))
        return self.dropout(x)


class Transition(nnx.Module):
    """BN - ReLU - 1x1 convolution - average pool, or BlurPool instead: half the resolution."""

    def __init__(self, make: LayerFactory, in_features: int, features: int):
        self.norm = make.batch_norm(in_features)
        self.conv = make.conv(in_features, features, 1)
        self.pool = make.pool(2, features)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        x = self.conv(jax.nn.relu(self.norm(x)))
        return avg_pool(x, 2) if self.pool is None else subsample(self.pool, x)


class DenseNet(Classifier):
    """Four densely connected blocks, plain or antialiased.

    Args:
        block_config: number of layers in each of the four blocks.
        growth_rate: channels that each layer adds.
        num_init_features: channels of the stem.
        bn_size: width of a layer's 1x1 convolution, in growth rates.
        num_classes, filter_size, pool, dtype: options of every model, see `Classifier`.
        pool_only: antialias the stem's max pool, not its convolution (as all published weights);
            False runs the stem's convolution at stride 1 too, at four times its cost.
        stem: "small" is for images such as CIFAR's 32x32: a 3x3 convolution of stride 1 and no max
            pool, so that the last map is an eighth of the image, not a thirty-second. "deep" has
            three 3x3 convolutions in place of the 7x7 one (He et al. 2019).
        drop_rate: fraction of each dense layer's output values that are dropped.

    With `remat` (see `Classifier`) a dense block also recomputes its layers one by one, so that
    memory is linear, not quadratic, in its depth.
    """

    last_layer = "classifier"
    _last_layer_init = {"bias_init": zeros}  # noqa: RUF012

    def __init__(
        self,
        block_config: Sequence[int],
        *,
        growth_rate: int = 32,
        num_init_features: int = 64,
        bn_size: int = 4,
        num_classes: int = 1000,
        filter_size: int | None = None,
        pool: str | PoolFactory | None = None,
        pool_only: bool = True,
        stem: Literal["imagenet", "small", "deep"] = "imagenet",
        drop_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_classes=num_classes, filter_size=filter_size, pool=pool)
        self.pool_only = boolean("pool_only", pool_only)
        block_config = integers("block_config", block_config)
        growth_rate = integer("growth_rate", growth_rate, least=1)
        features = integer("num_init_features", num_init_features, least=2)
        bn_size = integer("bn_size", bn_size, least=1)
        drop_rate = fraction("drop_rate", drop_rate)
        make = LayerFactory(rngs, dtype, pool_factory(filter_size, pool), kaiming_normal_fan_in)
        first = stem_convolution(stem, pool_only=self.pool_only, is_antialiased=self.is_antialiased)
        self.is_small = first.is_small
        self.conv0 = first.layer(make, features)
        self.norm0 = make.batch_norm(features)
        self.conv_pool = make.pool(first.pool_stride, features)
        self.pool = make.pool(1 if self.is_small else 2, features)
        options = {"width": bn_size * growth_rate, "drop_rate": drop_rate}
        blocks, transitions = [], []
        for i, count in enumerate(block_config):
            if i > 0:
                transitions.append(Transition(make, features, features // 2))
                features //= 2
            block = []
            for _ in range(count):
                block.append(DenseLayer(make, features, growth_rate, **options))
                features += growth_rate
            blocks.append(nnx.List(block))
        self.blocks, self.transitions = nnx.List(blocks), nnx.List(transitions)
        self.norm5 = make.batch_norm(features)
        self.classifier = self._new_last_layer(features, self.num_classes, dtype=dtype, rngs=rngs)

    def stem(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """First convolution and max pool: a quarter of the resolution, or all of it if small."""
        x = self._stem_conv(x)
        return x if self.is_small else self._stem_pool(x)

    def _stem_conv(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        x = jax.nn.relu(self.norm0(self.conv0(x)))
        return subsample(self.conv_pool, x)  # BlurPool only with pool_only=False

    def _stem_pool(self, x: Float[Array, "N H W c"]) -> Float[Array, "N h w c"]:
        return strided_max_pool(self.pool, x, window=3, padding=1)

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self.stem
        yield from self._dense_blocks()

    def feature_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self._stem_conv
        if not self.is_small:
            yield "pool", self._stem_pool
        yield from self._dense_blocks()

    def _dense_blocks(self) -> Iterator[tuple[str, Callable]]:
        for i, layers in enumerate(self.blocks):
            yield f"blocks.{i}", partial(_dense_block, layers, remat=self.remat)
            if i < len(self.transitions):
                yield f"transitions.{i}", self.transitions[i]
        yield "norm5", partial(relu_after, self.norm5)

    def torch_layers(self) -> Layers:
        first = self.conv0
        convolutions = first.sequential() if isinstance(first, DeepStem) else [first]
        layers = [layer for layer in convolutions if layer is not None]
        for i, layer in enumerate([*layers, self.norm0]):
            yield f"features.{'norm' if i % 2 else 'conv'}{i // 2}", layer
        yield from pool_layers("features.ds0", self.conv_pool, self.conv0.out_features)
        yield from pool_layers("features.pool0", self.pool, self.conv0.out_features)
        for i, block in enumerate(self.blocks, 1):
            for j, layer in enumerate(block, 1):
                for name in ("norm1", "conv1", "norm2", "conv2"):
                    yield f"features.denseblock{i}.denselayer{j}.{name}", getattr(layer, name)
            if i < len(self.blocks):
                transition, name = self.transitions[i - 1], f"features.transition{i}"
                yield f"{name}.norm", transition.norm
                yield f"{name}.conv", transition.conv
                channels = transition.conv.out_features
                yield from pool_layers(f"{name}.pool", transition.pool, channels)
        yield "features.norm5", self.norm5
        if self.classifier is not None:
            yield "classifier", self.classifier


def _dense_block(layers: Sequence[DenseLayer], x: Array, *, remat: bool) -> Array:
    maps = [x]
    for layer in layers:
        maps.append((rematerialised(layer) if remat else layer)(maps))
    return jnp.concatenate(maps, axis=-1)


for _name, _blocks, _options in (
    ("densenet121", (6, 12, 24, 16), {}),
    ("densenet161", (6, 12, 36, 24), {"growth_rate": 48, "num_init_features": 96}),
    ("densenet169", (6, 12, 32, 32), {}),
    ("densenet201", (6, 12, 48, 32), {}),
):
    register_model(_name, partial(DenseNet, _blocks, **_options), published=True)
