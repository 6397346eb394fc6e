"""VGG-16 with batch normalisation and 4-tap BlurPools: 90 epochs at a rate of 0.05.

    python train.py --config configs/vgg16_bn_lpf4.py --config.data.path=ILSVRC2012

Published: top-1 74.12 %, consistency 91.22 %, trained from scratch; 73.36 % and 89.24 % without
antialiasing (`--config configs/vgg16_bn_lpf4.py:baseline`).

As in the original, the gradients of the two halves of a batch are added up;
`--config.optimizer.accumulate=mean` averages them.
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config(variant: str = "") -> Config:
    config = imagenet.recipe("vgg16_bn_lpf4", variant)
    config.optimizer.learning_rate = 0.05
    config.optimizer.accumulation_steps = 2  # of 128 images
    config.optimizer.accumulate = "sum"
    return config
