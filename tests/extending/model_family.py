"""A user's model family in one file: a stack of strided convolutions, plain or antialiased.

python train.py --plugin tests/extending/model_family.py --config.model=stack2_lpf3
"""

from functools import partial

import jax
from flax import nnx

import aa_flax
from aa_flax.nn.layers import BatchNorm, conv2d, linear
from aa_flax.pools import make_pool, pool_factory, subsample


class Block(nnx.Module):
    """Convolution - BatchNorm - ReLU at half the resolution: the stride is the pool's, if any."""

    def __init__(self, in_features, features, *, pool, dtype, rngs):
        self.pool = make_pool(pool, 2, features=features, rngs=rngs)
        stride = 2 if self.pool is None else 1
        self.conv = conv2d(
            in_features, features, 3, stride=stride, padding=1, dtype=dtype, rngs=rngs
        )
        self.bn = BatchNorm(features, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.bn(self.conv(x)))
        return x if self.pool is None else subsample(self.pool, x)


class Stack(aa_flax.Classifier):
    """`depth` blocks and a linear layer (none with `num_classes=0`), for images `(N, H, W, 3)`."""

    def __init__(self, depth, *, num_classes=1000, filter_size=None, pool=None, dtype=None, rngs):
        super().__init__(num_classes=num_classes, filter_size=filter_size, pool=pool)
        factory, blocks, features = pool_factory(filter_size, pool), [], 3
        for i in range(depth):
            blocks.append(Block(features, 8 << i, pool=factory, dtype=dtype, rngs=rngs))
            features = 8 << i
        self.blocks = nnx.List(blocks)
        self.fc = linear(features, num_classes, dtype=dtype, rngs=rngs) if num_classes else None

    def named_blocks(self):
        for i, block in enumerate(self.blocks):
            yield f"blocks.{i}", block

    def torch_layers(self):
        """Yields the names in a torch model whose blocks are `Sequential(conv, bn, relu)`."""
        for i, block in enumerate(self.blocks):
            yield f"blocks.{i}.0", block.conv
            yield f"blocks.{i}.1", block.bn
        if self.fc is not None:
            yield "fc", self.fc


for _depth in (2, 3):
    aa_flax.register_model(f"stack{_depth}", partial(Stack, _depth), filter_sizes=(3,))
