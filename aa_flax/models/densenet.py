"""DenseNet (Huang et al. 2017), plain and antialiased.

With `filter_size=None` these are torchvision's nets. With a filter size (Zhang, ICML 2019,
Sec. 3.2), or another pool in BlurPool's place:

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

from aa_flax.errors import InputError, boolean, fraction, integer, integers
from aa_flax.initialisers import kaiming_normal_fan_in, zeros
from aa_flax.layers import BatchNorm, conv2d, linear
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import register_model
from aa_flax.models.rematerialise import rematerialised
from aa_flax.models.stems import stem_convolution
from aa_flax.models.torch_layout import Layers, pool_layers
from aa_flax.ops import avg_pool, materialised, max_pool
from aa_flax.pools.registry import PoolFactory, make_pool, pool_factory, subsample


class DenseLayer(nnx.Module):
    """BN - ReLU - 1x1 convolution - BN - ReLU - 3x3 convolution, on all feature maps so far."""

    def __init__(
        self,
        in_features: int,
        growth_rate: int,
        *,
        bottleneck: int,
        drop_rate: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        width = bottleneck * growth_rate
        self.norm1 = BatchNorm(in_features, rngs=rngs)
        self.conv1 = _conv(in_features, width, 1, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(width, rngs=rngs)
        self.conv2 = _conv(width, growth_rate, 3, padding=1, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(drop_rate, rngs=rngs if drop_rate else None)

    def __call__(self, maps: Sequence[Float[Array, "N H W _"]]) -> Float[Array, "N H W growth"]:
        x = materialised(jnp.concatenate(maps, axis=-1))
        x = self.conv1(jax.nn.relu(self.norm1(x)))
        x = self.conv2(jax.nn.relu(self.norm2(x)))
        return self.dropout(x)


class Transition(nnx.Module):
    """BN - ReLU - 1x1 convolution - average pool, or a pool in its place: half the resolution."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        pool: PoolFactory | None,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.norm = BatchNorm(in_features, rngs=rngs)
        self.conv = _conv(in_features, features, 1, dtype=dtype, rngs=rngs)
        self.pool = make_pool(pool, 2, features=features, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        x = self.conv(jax.nn.relu(self.norm(x)))
        return avg_pool(x, 2) if self.pool is None else subsample(self.pool, x)


class DenseNet(Classifier):
    """Four densely connected blocks for images `(N, H, W, 3)`, plain or antialiased.

    Args:
        block_config: number of layers in each of the four blocks.
        growth_rate: feature maps that each layer adds.
        num_init_features: feature maps of the stem.
        bn_size: width of a layer's 1x1 convolution, in growth rates.
        num_classes: outputs of the last layer; 0: none, the net gives what comes before it.
        filter_size: taps of every BlurPool, 1 to 7 in the published nets; None: torchvision's net.
        pool: what subsamples in BlurPool's place, a name of `aa_flax.list_pools()` or a function
            `stride -> module` (see `aa_flax.pools.registry`); instead of a filter size.
        pool_only: antialias the stem's max pool, not its convolution (as all published weights);
            False runs the stem's convolution densely too, at four times its cost.
        stem: "small" is for images such as CIFAR's 32x32: a 3x3 convolution of stride 1 and no max
            pool, so that the last map is an eighth of the image, not a thirty-second.
        drop_rate: share of the values dropped of what each dense layer adds.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.

    With `remat` (see `Classifier`) a dense block computes its layers one by one a third time, so
    that memory stays linear, not quadratic, in its depth.
    """

    last_layer = "classifier"

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
        stem: Literal["imagenet", "small"] = "imagenet",
        drop_rate: float = 0.0,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_classes=num_classes, filter_size=filter_size, pool=pool)
        self.pool_only = boolean("pool_only", pool_only)
        if not self.is_antialiased and not pool_only:
            raise InputError(
                "pool_only=False needs an antialiased net: give a filter_size or a pool"
            )
        block_config = integers("block_config", block_config)
        growth_rate = integer("growth_rate", growth_rate, least=1)
        features = integer("num_init_features", num_init_features, least=2)
        bn_size = integer("bn_size", bn_size, least=1)
        drop_rate = fraction("drop_rate", drop_rate)
        factory = pool_factory(filter_size, pool)

        conv = stem_convolution(stem, pool_only=self.pool_only)
        self.is_small = conv.reduction == 1
        self.conv0 = _conv(
            3,
            features,
            conv.size,
            stride=conv.stride,
            padding=conv.size // 2,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm0 = BatchNorm(features, rngs=rngs)
        carried = conv.reduction // conv.stride
        self.conv_pool = make_pool(factory, carried, features=features, rngs=rngs)
        pool_stride = 1 if self.is_small else 2
        self.pool = make_pool(factory, pool_stride, features=features, rngs=rngs)

        blocks, transitions = [], []
        for i, count in enumerate(block_config):
            if i > 0:
                transition = Transition(
                    features, features // 2, pool=factory, dtype=dtype, rngs=rngs
                )
                transitions.append(transition)
                features //= 2
            block = []
            for _ in range(count):
                layer = DenseLayer(
                    features,
                    growth_rate,
                    bottleneck=bn_size,
                    drop_rate=drop_rate,
                    dtype=dtype,
                    rngs=rngs,
                )
                block.append(layer)
                features += growth_rate
            blocks.append(nnx.List(block))
        self.blocks, self.transitions = nnx.List(blocks), nnx.List(transitions)
        self.norm5 = BatchNorm(features, rngs=rngs)
        self.classifier = self._new_last_layer(features, self.num_classes, dtype=dtype, rngs=rngs)

    def stem(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """First convolution and pooling: a quarter of the resolution, or all of it if small."""
        x = self._stem_conv(x)
        return x if self.is_small else self._stem_pool(x)

    def _stem_conv(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        x = jax.nn.relu(self.norm0(self.conv0(x)))
        return x if self.conv_pool is None else subsample(self.conv_pool, x)

    def _stem_pool(self, x: Float[Array, "N H W c"]) -> Float[Array, "N h w c"]:
        if self.pool is None:
            return max_pool(x, 3, stride=2, padding=1)
        return subsample(self.pool, max_pool(x, 3, stride=1, padding=1))

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
        yield "norm5", partial(_norm_relu, self.norm5)

    def torch_layers(self) -> Layers:
        yield "features.conv0", self.conv0
        yield "features.norm0", self.norm0
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

    def _new_last_layer(
        self, in_features: int, num_classes: int | None, *, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> nnx.Linear | None:
        if not num_classes:
            return None
        return linear(in_features, num_classes, bias_init=zeros, dtype=dtype, rngs=rngs)


def _dense_block(
    layers: Sequence[DenseLayer], x: Float[Array, "N H W C"], *, remat: bool
) -> Float[Array, "N H W c"]:
    """Each layer sees the maps of all before it; the block gives all of them."""
    maps = [x]
    for layer in layers:
        maps.append((rematerialised(layer) if remat else layer)(maps))
    return jnp.concatenate(maps, axis=-1)


def _norm_relu(norm: BatchNorm, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    return jax.nn.relu(norm(x))


def _conv(in_features: int, out_features: int, kernel_size: int, **options) -> nnx.Conv:
    return conv2d(
        in_features, out_features, kernel_size, kernel_init=kaiming_normal_fan_in, **options
    )


register_model("densenet121", partial(DenseNet, (6, 12, 24, 16)), published=True)
register_model(
    "densenet161",
    partial(DenseNet, (6, 12, 36, 24), growth_rate=48, num_init_features=96),
    published=True,
)
register_model("densenet169", partial(DenseNet, (6, 12, 32, 32)), published=True)
register_model("densenet201", partial(DenseNet, (6, 12, 48, 32)), published=True)
