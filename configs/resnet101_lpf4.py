"""ResNet-101 with 4-tap BlurPools: the published recipe, 90 epochs at a rate of 0.1.

    python train.py --config configs/resnet101_lpf4.py --config.data.path=ILSVRC2012

Published: top-1 78.22 %, consistency 91.85 %, trained from scratch; 77.37 % and 89.81 % without
antialiasing (`--config configs/resnet101_lpf4.py:baseline`).
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config(variant: str = "") -> Config:
    return imagenet.recipe("resnet101_lpf4", variant)
