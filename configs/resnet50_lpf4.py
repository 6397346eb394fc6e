"""ResNet-50 with 4-tap BlurPools: the published recipe, 90 epochs at a rate of 0.1.

    python train.py --config configs/resnet50_lpf4.py --config.data.path=ILSVRC2012

Published: top-1 77.23 %, consistency 91.29 %, trained from scratch; 76.16 % and 89.20 % without
antialiasing (`--config configs/resnet50_lpf4.py:baseline`).
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config(variant: str = "") -> Config:
    return imagenet.recipe("resnet50_lpf4", variant)
