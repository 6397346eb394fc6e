"""The quickstart: ResNet-18 antialiased by 4-tap BlurPools, on scikit-learn's digits.

    python train.py --config configs/digits_resnet18_lpf4.py

Trained on centred digits only, then tested on shifted ones. README has the measured results.
"""

from aa_flax.config import Config
from aa_flax.configs import digits_resnet18


def get_config() -> Config:
    config = digits_resnet18.get_config()
    config.name = "digits_resnet18_lpf4"
    config.model = "resnet18_lpf4"
    return config
