"""ResNet-34 with 4-tap BlurPools: the published recipe, 90 epochs at a rate of 0.1.

    python train.py --config configs/resnet34_lpf4.py --config.data.path=ILSVRC2012

Published: top-1 74.38 %, consistency 89.53 %, trained from scratch; 73.30 % and 87.56 % without
antialiasing (`--config configs/resnet34_lpf4.py:baseline`).
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config(variant: str = "") -> Config:
    return imagenet.recipe("resnet34_lpf4", variant)
