"""MobileNetV2 with 4-tap BlurPools: 150 epochs, cosine schedule from a rate of 0.05.

    python train.py --config configs/mobilenet_v2_lpf4.py --config.data.path=ILSVRC2012

Published: top-1 72.72 %, consistency 87.72 %, trained from scratch; 71.88 % and 86.50 % without
antialiasing (`--config configs/mobilenet_v2_lpf4.py:baseline`).
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config(variant: str = "") -> Config:
    config = imagenet.recipe("mobilenet_v2_lpf4", variant)
    config.num_epochs = 150
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 4e-5
    return config
