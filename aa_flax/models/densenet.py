"""DenseNet (Huang et al. 2017), plain and antialiased.

With `filter_size=None` these are torchvision's nets. With a filter size (Zhang, ICML 2019,
Sec. 3.2):

    max pool, stride 2          ->  max pool, stride 1  -  BlurPool, stride 2
    average pool, stride 2      ->  BlurPool, stride 2     (itself a weighted average)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.layers import BatchNorm, conv2d, linear
from aa_flax.models.classifier import Classifier, rematerialised
from aa_flax.ops import avg_pool, max_pool
from aa_flax.pools.blur import BlurPool

_kaiming_normal_fan_in = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class DenseLayer(nnx.Module):
    """BN - ReLU - 1x1 convolution - BN - ReLU - 3x3 convolution, on all feature maps so far."""

    def __init__(self, in_features, growth_rate, bottleneck, drop_rate, dtype, rngs):
        width = bottleneck * growth_rate
        self.norm1 = BatchNorm(in_features, rngs=rngs)
        self.conv1 = _conv(in_features, width, 1, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(width, rngs=rngs)
        self.conv2 = _conv(width, growth_rate, 3, padding=1, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(drop_rate, rngs=rngs if drop_rate else None)

    def __call__(self, maps: Sequence[Float[Array, "N H W _"]]) -> Float[Array, "N H W growth"]:
        x = jnp.concatenate(maps, axis=-1)
        x = self.conv1(jax.nn.relu(self.norm1(x)))
        x = self.conv2(jax.nn.relu(self.norm2(x)))
        return self.dropout(x)


class Transition(nnx.Module):
    """BN - ReLU - 1x1 convolution - BlurPool or average pool: half the resolution."""

    def __init__(self, in_features, features, filter_size, dtype, rngs):
        self.norm = BatchNorm(in_features, rngs=rngs)
        self.conv = _conv(in_features, features, 1, dtype=dtype, rngs=rngs)
        self.blur = None if filter_size is None else BlurPool(filter_size, stride=2)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        x = self.conv(jax.nn.relu(self.norm(x)))
        return avg_pool(x, 2) if self.blur is None else self.blur(x)


class DenseNet(Classifier):
    """Four densely connected blocks for images `(N, H, W, 3)`, plain or antialiased.

    Args:
        block_config: number of layers in each of the four blocks.
        growth_rate: feature maps that each layer adds.
        num_init_features: feature maps of the stem.
        bn_size: width of a layer's 1x1 convolution, in growth rates.
        num_classes: outputs of the last layer.
        filter_size: taps of every BlurPool, 1 to 7 in the published nets; None: torchvision's net.
        pool_only: antialias the stem's max pool, not its convolution (as all published weights);
            False runs the stem's convolution densely too, at four times its cost.
        drop_rate: share of the values dropped of what each dense layer adds.
        remat: recompute the dense layers in the backward pass instead of keeping their insides:
            memory linear, not quadratic, in the depth of a block, for a second forward pass
            through them (on CPU XLA merges the two again: neither memory nor time changes).
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
    """

    def __init__(
        self,
        block_config: Sequence[int],
        *,
        growth_rate: int = 32,
        num_init_features: int = 64,
        bn_size: int = 4,
        num_classes: int = 1000,
        filter_size: int | None = None,
        pool_only: bool = True,
        drop_rate: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        if filter_size is None and not pool_only:
            raise InputError("pool_only=False needs an antialiased net: give a filter_size")
        self.filter_size = filter_size
        self.pool_only = pool_only
        self.remat = remat
        self.blur = None if filter_size is None else BlurPool(filter_size, stride=2)
        stem_stride = 2 if pool_only else 1
        self.conv0 = _conv(
            3, num_init_features, 7, stride=stem_stride, padding=3, dtype=dtype, rngs=rngs
        )
        self.norm0 = BatchNorm(num_init_features, rngs=rngs)

        features, blocks, transitions = num_init_features, [], []
        for i, count in enumerate(block_config):
            if i > 0:
                transitions.append(Transition(features, features // 2, filter_size, dtype, rngs))
                features //= 2
            block = []
            for _ in range(count):
                block.append(DenseLayer(features, growth_rate, bn_size, drop_rate, dtype, rngs))
                features += growth_rate
            blocks.append(nnx.List(block))
        self.blocks, self.transitions = nnx.List(blocks), nnx.List(transitions)
        self.norm5 = BatchNorm(features, rngs=rngs)
        self.classifier = linear(
            features, num_classes, bias_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs
        )

    def stem(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        """First convolution and pooling: a quarter of the resolution."""
        x = jax.nn.relu(self.norm0(self.conv0(x)))
        if self.blur is None:
            return max_pool(x, 3, stride=2, padding=1)
        if not self.pool_only:
            x = self.blur(x)
        return self.blur(max_pool(x, 3, stride=1, padding=1))

    def dense_block(
        self, layers: Sequence[DenseLayer], x: Float[Array, "N H W C"]
    ) -> Float[Array, "N H W c"]:
        """Each layer sees the maps of all before it; the block gives all of them."""
        maps = [x]
        for layer in layers:
            maps.append((rematerialised(layer) if self.remat else layer)(maps))
        return jnp.concatenate(maps, axis=-1)

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self.stem
        for i, layers in enumerate(self.blocks):
            yield f"blocks.{i}", partial(self.dense_block, layers)
            if i < len(self.transitions):
                yield f"transitions.{i}", self.transitions[i]
        yield "norm5", lambda x: jax.nn.relu(self.norm5(x))

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        return self.classifier(self.features(x).mean((1, 2)))


def _conv(in_features: int, out_features: int, kernel_size: int, **options) -> nnx.Conv:
    return conv2d(
        in_features, out_features, kernel_size, kernel_init=_kaiming_normal_fan_in, **options
    )
