"""AlexNet with 4-tap BlurPools: the published recipe, 90 epochs at a rate of 0.01.

    python train.py --config configs/alexnet_lpf4.py --config.data.path=ILSVRC2012

Published: top-1 56.72 %, consistency 82.54 %, trained from scratch; 56.55 % and 78.18 % without
antialiasing (`--config configs/alexnet_lpf4.py:baseline`).
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config(variant: str = "") -> Config:
    config = imagenet.recipe("alexnet_lpf4", variant)
    config.optimizer.learning_rate = 0.01
    return config
