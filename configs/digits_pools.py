"""ResNet-18 with any pool in the place of its strides, all of them, on scikit-learn's digits.

    python train.py --config configs/digits_pools.py:aps_l2

What stands behind the colon is a name of `aa_flax.list_pools()`; `none` is the plain net. On crops
of 64 pixels, which the net's strides divide. docs/pools.md tells the pools apart, and
`python benchmarks/digits_pools.py` makes its table.
"""

from aa_flax.config import Config
from aa_flax.configs import digits_resnet18


def get_config(pool: str = "") -> Config:
    config = digits_resnet18.get_config()
    config.name = f"digits_pools_{pool}" if pool else "digits_pools"
    config.data.image_size = 72
    config.data.crop_size = 64
    config.eval.passes = 5
    if pool != "none":
        config.pool = pool or "binomial4"
        config.model_options = {"pool_only": False}  # the stem's convolution, too
    return config
