"""ResNet-18 with 4-tap BlurPools: the published recipe, 90 epochs at a rate of 0.1.

    python train.py --config configs/resnet18_lpf4.py --config.data.path=ILSVRC2012

Published: top-1 71.48 %, consistency 88.07 %, trained from scratch; 69.74 % and 85.11 % without
antialiasing (`--config configs/resnet18_lpf4.py:baseline`).
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config(variant: str = "") -> Config:
    return imagenet.recipe("resnet18_lpf4", variant)
