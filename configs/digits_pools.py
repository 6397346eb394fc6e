"""ResNet-18 with any pool instead of all of its strides, on scikit-learn's digits.

    python train.py --config configs/digits_pools.py:aps_l2

The name after the colon is one of `aa_flax.list_pools()`; `none` is the plain model. Crops have 64
pixels, which the strides divide. docs/pools.md explains the pools; `python
benchmarks/digits_pools.py` makes its table.
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
        config.model_options = {"pool_only": False}  # including the stem's convolution
    return config
