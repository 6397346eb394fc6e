"""AlexNet (Krizhevsky 2014, "One weird trick"), plain and antialiased.

With `filter_size=None` this is torchvision's net. With a filter size (Zhang, ICML 2019, Sec. 4.1):

    conv, stride 4  -  ReLU     ->  conv, stride 2  -  ReLU  -  BlurPool, stride 2
    max pool, stride 2          ->  max pool, stride 1  -  BlurPool, stride 2
"""

from collections.abc import Callable, Iterator

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.layers import conv2d, linear, torch_uniform
from aa_flax.models.classifier import Classifier
from aa_flax.ops import adaptive_avg_pool, max_pool
from aa_flax.pools.blur import BlurPool


class AlexNet(Classifier):
    """Five convolutions and three linear layers for images `(N, H, W, 3)`, plain or antialiased.

    Args:
        num_classes: outputs of the last layer.
        filter_size: taps of every BlurPool, 1 to 7 in the published nets; None: torchvision's net.
        relu_first: whether the first ReLU comes before its BlurPool (as all published weights).
        pool_only: leave the first convolution's stride as it is and antialias the pools alone.
            As in the original, no ReLU follows the first convolution then.
        dropout: share of the values dropped before each of the first two linear layers.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        filter_size: int | None = None,
        relu_first: bool = True,
        pool_only: bool = False,
        dropout: float = 0.5,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        if filter_size is None and (pool_only or not relu_first):
            raise InputError("relu_first and pool_only need an antialiased net: give a filter_size")
        self.filter_size = filter_size
        self.relu_first = relu_first
        self.pool_only = pool_only
        self.blur = None if filter_size is None else BlurPool(filter_size, stride=2)
        stem_stride = 4 if self.blur is None or pool_only else 2
        self.conv1 = _conv(3, 64, 11, stride=stem_stride, padding=2, dtype=dtype, rngs=rngs)
        self.conv2 = _conv(64, 192, 5, padding=2, dtype=dtype, rngs=rngs)
        self.conv3 = _conv(192, 384, 3, padding=1, dtype=dtype, rngs=rngs)
        self.conv4 = _conv(384, 256, 3, padding=1, dtype=dtype, rngs=rngs)
        self.conv5 = _conv(256, 256, 3, padding=1, dtype=dtype, rngs=rngs)
        self.dropout1 = nnx.Dropout(dropout, rngs=rngs)
        self.fc1 = linear(6 * 6 * 256, 4096, dtype=dtype, rngs=rngs)
        self.dropout2 = nnx.Dropout(dropout, rngs=rngs)
        self.fc2 = linear(4096, 4096, dtype=dtype, rngs=rngs)
        self.fc3 = linear(4096, num_classes, dtype=dtype, rngs=rngs)

    def stem(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w 64"]:
        """The first convolution: a quarter of the resolution."""
        x = self.conv1(x)
        if self.blur is None:
            return jax.nn.relu(x)
        if self.pool_only:
            return x
        return self.blur(jax.nn.relu(x)) if self.relu_first else jax.nn.relu(self.blur(x))

    def pool(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
        """A max pool, plain or antialiased: half the resolution."""
        if self.blur is None:
            return max_pool(x, 3, stride=2)
        return self.blur(max_pool(x, 3, stride=1))

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        yield "stem", self.stem
        yield "pool1", self.pool
        yield "conv2", lambda x: jax.nn.relu(self.conv2(x))
        yield "pool2", self.pool
        yield "conv3", lambda x: jax.nn.relu(self.conv3(x))
        yield "conv4", lambda x: jax.nn.relu(self.conv4(x))
        yield "conv5", lambda x: jax.nn.relu(self.conv5(x))
        yield "pool5", self.pool

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N classes"]:
        x = adaptive_avg_pool(self.features(x), 6)
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(self.fc1(self.dropout1(x)))
        x = jax.nn.relu(self.fc2(self.dropout2(x)))
        return self.fc3(x)


def _conv(in_features: int, out_features: int, kernel_size: int, **options) -> nnx.Conv:
    """A convolution with a bias, initialised as torch does by default."""
    init = torch_uniform(in_features * kernel_size**2)
    return conv2d(
        in_features,
        out_features,
        kernel_size,
        use_bias=True,
        kernel_init=init,
        bias_init=init,
        **options,
    )
