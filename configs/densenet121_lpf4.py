"""DenseNet-121 with 4-tap BlurPools: the published recipe, 90 epochs at a rate of 0.1.

    python train.py --config configs/densenet121_lpf4.py --config.data.path=ILSVRC2012

Published: top-1 75.29 %, consistency 90.29 %, trained from scratch; 74.43 % and 88.81 % without
antialiasing (`--config configs/densenet121_lpf4.py:baseline`).
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config(variant: str = "") -> Config:
    return imagenet.recipe("densenet121_lpf4", variant)
