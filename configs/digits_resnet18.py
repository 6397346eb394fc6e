"""The baseline of the quickstart: torchvision's ResNet-18 on scikit-learn's digits.

    python train.py --config configs/digits_resnet18.py

Trained on centred digits only, then tested on shifted ones. README has the measured results.
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config() -> Config:
    config = imagenet.get_config()
    config.name = "digits_resnet18"
    config.model = "resnet18"
    config.num_epochs = 8
    config.batch_size = 64
    config.optimizer.schedule = "one_cycle"
    config.optimizer.learning_rate = 0.05  # the highest of the cycle
    config.data.name = "digits"
    config.data.resize_size = 0  # no resizing
    config.data.image_size = 48
    config.data.crop_size = 40
    config.data.augmentation = "center_crop"
    config.data.flip = False  # a mirrored digit is another sign
    config.eval.batch_size = 64
    config.eval.shift_range = 9  # crops at offsets 0..8 on each axis
    config.eval.passes = 20
    return config
