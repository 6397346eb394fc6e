"""VGG-16 with 4-tap BlurPools: the published recipe, 90 epochs at a rate of 0.01.

    python train.py --config configs/vgg16_lpf4.py --config.data.path=ILSVRC2012

Published: top-1 72.43 %, consistency 89.92 %, trained from scratch; 71.59 % and 88.52 % without
antialiasing (`--config configs/vgg16_lpf4.py:baseline`).

As in the original, the gradients of the two halves of a batch are added up;
`--config.optimizer.accumulate=mean` averages them.
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config(variant: str = "") -> Config:
    config = imagenet.recipe("vgg16_lpf4", variant)
    config.optimizer.learning_rate = 0.01
    config.optimizer.accumulation_steps = 2  # of 128 images
    config.optimizer.accumulate = "sum"
    return config
