"""AlexNet (Krizhevsky 2014, "One weird trick"), plain and antialiased.

With `filter_size=None` this is torchvision's model. With a filter size (Zhang, ICML 2019,
Sec. 4.1), or another pool instead of BlurPool:

    conv, stride 4  -  ReLU     ->  conv, stride 2  -  ReLU  -  BlurPool, stride 2
    max pool, stride 2          ->  max pool, stride 1  -  BlurPool, stride 2
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError, boolean, fraction
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import register_model
from aa_flax.models.torch_layout import (
    DROPOUT,
    MAX_POOL,
    RELU,
    Flattened,
    Layers,
    pool_entry,
    sequential,
)
from aa_flax.nn.initializers import torch_uniform
from aa_flax.nn.layers import LayerFactory, relu_after, strided_max_pool
from aa_flax.nn.pool_registry import PoolFactory, pool_factory, subsample
from aa_flax.ops import adaptive_avg_pool


class AlexNet(Classifier):
    """Five convolutions and three linear layers for images `(N, H, W, 3)`, plain or antialiased.

    Args:
        num_classes, filter_size, pool, dtype: options of every model, see `Classifier`.
        relu_first: put the first ReLU before its pool (as all published weights).
        pool_only: keep the stride of the first convolution and antialias the max pools alone; as in
            the original, no ReLU follows the first convolution then.
        dropout: fraction of values dropped before each of the first two linear layers.
    """

    last_layer = "fc3"

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        filter_size: int | None = None,
        pool: str | PoolFactory | None = None,
        relu_first: bool = True,
        pool_only: bool = False,
        dropout: float = 0.5,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_classes=num_classes, filter_size=filter_size, pool=pool)
        self.relu_first = boolean("relu_first", relu_first)
        self.pool_only = boolean("pool_only", pool_only)
        if not self.is_antialiased and (pool_only or not relu_first):
            raise InputError(
                "relu_first and pool_only need an antialiased model: give a filter_size or a pool"
            )
        make = LayerFactory(rngs, dtype, pool_factory(filter_size, pool))

        def conv(in_features: int, features: int, size: int, **options: int) -> nnx.Conv:
            init = torch_uniform(in_features * size**2)
            inits = {"use_bias": True, "kernel_init": init, "bias_init": init}
            return make.conv(in_features, features, size, **inits, **options)

        dropout = fraction("dropout", dropout)
        stem_stride = 2 if self.is_antialiased and not pool_only else 4
        self.conv_pool = make.pool(4 // stem_stride, 64)
        self.pools = nnx.List(make.pool(2, features) for features in (64, 192, 256))
        self.conv1 = conv(3, 64, 11, stride=stem_stride, padding=2)
        self.conv2 = conv(64, 192, 5, padding=2)
        self.conv3 = conv(192, 384, 3, padding=1)
        self.conv4 = conv(384, 256, 3, padding=1)
        self.conv5 = conv(256, 256, 3, padding=1)
        self.dropout1 = nnx.Dropout(dropout, rngs=rngs)
        self.fc1 = make.linear(6 * 6 * 256, 4096)
        self.dropout2 = nnx.Dropout(dropout, rngs=rngs)
        self.fc2 = make.linear(4096, 4096)
        self.fc3 = self._new_last_layer(4096, self.num_classes, dtype=dtype, rngs=rngs)

    def stem(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w 64"]:
        """First convolution: a quarter of the resolution."""
        x = self.conv1(x)
        if self.pool_only:
            return x
        if self.relu_first:
            return subsample(self.conv_pool, jax.nn.relu(x))
        return jax.nn.relu(subsample(self.conv_pool, x))

    def named_blocks(self) -> Iterator[tuple[str, Callable]]:
        pool1, pool2, pool5 = self.pools
        yield "stem", self.stem
        yield "pool1", partial(strided_max_pool, pool1, window=3)
        yield "conv2", partial(relu_after, self.conv2)
        yield "pool2", partial(strided_max_pool, pool2, window=3)
        yield "conv3", partial(relu_after, self.conv3)
        yield "conv4", partial(relu_after, self.conv4)
        yield "conv5", partial(relu_after, self.conv5)
        yield "pool5", partial(strided_max_pool, pool5, window=3)

    def torch_layers(self) -> Layers:
        pool1, pool2, pool5 = map(pool_entry, self.pools, (64, 192, 256))
        stem = [] if self.pool_only else [[RELU], pool_entry(self.conv_pool, 64)]
        stem = chain(*(stem if self.relu_first else reversed(stem)))
        features = [self.conv1, *stem, MAX_POOL, *pool1]
        features += [self.conv2, RELU, MAX_POOL, *pool2]
        features += [self.conv3, RELU, self.conv4, RELU, self.conv5, RELU, MAX_POOL, *pool5]
        yield from sequential("features", features)
        first = Flattened(self.fc1, 6, 6)
        classifier = [DROPOUT, first, RELU, DROPOUT, self.fc2, RELU, self.fc3]
        yield from sequential("classifier", classifier)

    def forward_head(
        self, features: Float[Array, "N h w 256"], pre_logits: bool = False
    ) -> Float[Array, "N classes"]:
        x = adaptive_avg_pool(features, 6).reshape(features.shape[0], self.fc1.in_features)
        x = jax.nn.relu(self.fc1(self.dropout1(x)))
        x = jax.nn.relu(self.fc2(self.dropout2(x)))
        return self._classified(x, pre_logits)


register_model("alexnet", AlexNet, published=True)
