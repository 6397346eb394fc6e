"""VGG (Simonyan and Zisserman 2015), with and without batch normalisation, plain and antialiased.

With `filter_size=None` these are torchvision's nets. With a filter size (Zhang, ICML 2019,
Sec. 3.2) each of the five max pools, the only strided layers, becomes

    max pool, stride 2          ->  max pool, stride 1  -  BlurPool, stride 2
"""

from collections.abc import Callable, Iterator, Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.layers import BatchNorm, conv2d, linear
from aa_flax.models.classifier import Classifier
from aa_flax.ops import adaptive_avg_pool, max_pool
from aa_flax.pools.blur import BlurPool


class ConvBlock(nnx.Module):
    """3x3 convolution - [BatchNorm] - ReLU. The convolution has a bias either way."""

    def __init__(self, in_features, features, batch_norm, dtype, rngs):
        self.conv = conv2d(
            in_features, features, 3, padding=1, use_bias=True, dtype=dtype, rngs=rngs
        )
        self.bn = BatchNorm(features, rngs=rngs) if batch_norm else None

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W c"]:
        x = self.conv(x)
        return jax.nn.relu(x if self.bn is None else self.bn(x))


class VGG(Classifier):
    """Five stages of 3x3 convolutions and three linear layers, plain or antialiased.

    Args:
        layers: number of convolutions in each of the five stages.
        batch_norm: normalise after every convolution.
        num_classes: outputs of the last layer.
        filter_size: taps of every BlurPool, 1 to 7 in the published nets; None: torchvision's net.
        dropout: share of the values dropped after each of the first two linear layers.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        batch_norm: bool = False,
        num_classes: int = 1000,
        filter_size: int | None = None,
        dropout: float = 0.5,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.filter_size = filter_size
        self.blur = None if filter_size is None else BlurPool(filter_size, stride=2)
        in_features, stages = 3, []
        for features, count in zip((64, 128, 256, 512, 512), layers, strict=True):
            stage = []
            for _ in range(count):
                stage.append(ConvBlock(in_features, features, batch_norm, dtype, rngs))
                in_features = features
            stages.append(nnx.List(stage))
        self.stages = nnx.List(stages)
        self.fc1 = _linear(7 * 7 * 512, 4096, dtype, rngs)
        self.dropout1 = nnx.Dropout(dropout, rngs=rngs)
        self.fc2 = _linear(4096, 4096, dtype, rngs)
        self.dropout2 = nnx.Dropout(dropout, rngs=rngs)
        self.fc3 = _linear(4096, num_classes, dtype, rngs)

    def pool(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
        """A max pool, plain or antialiased: half the resolution."""
        if self.blur is None:
            return max_pool(x, 2, stride=2)
        return self.blur(max_pool(x, 2, stride=1))

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        for i, stage in enumerate(self.stages, 1):
            for j, block in enumerate(stage, 1):
                yield f"conv{i}_{j}", block
            yield f"pool{i}", self.pool

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        x = adaptive_avg_pool(self.features(x), 7)
        x = x.reshape(x.shape[0], -1)
        x = self.dropout1(jax.nn.relu(self.fc1(x)))
        x = self.dropout2(jax.nn.relu(self.fc2(x)))
        return self.fc3(x)


def _linear(in_features, out_features, dtype, rngs) -> nnx.Linear:
    return linear(
        in_features,
        out_features,
        kernel_init=nnx.initializers.normal(0.01),
        bias_init=nnx.initializers.zeros,
        dtype=dtype,
        rngs=rngs,
    )
