"""A user's pool in one file: the mean of squares as large as the stride.

python train.py --plugin tests/extending/pool.py --config.model=resnet18 --config.pool=box
"""

from flax import nnx

import aa_flax
from aa_flax.ops import avg_pool


class Box(nnx.Module):
    """A pool that averages squares of `stride` pixels; the stride divides H and W."""

    def __init__(self, stride: int):
        self.stride = stride

    def __call__(self, x):
        return avg_pool(x, self.stride)


aa_flax.register_pool("box", Box)
