"""The baseline of the quickstart: torchvision's ResNet-18 on scikit-learn's digits.

    python train.py --config configs/digits_resnet18.py

Trained on centred digits only, then tested on shifted ones. README has the measured results.
"""

from ml_collections import ConfigDict

from aa_flax.config import Config


def get_config() -> Config:
    return ConfigDict(
        {
            "name": "digits_resnet18",  # the run's folder is runs/<name>, unless --workdir is given
            "model": "resnet18",
            "seed": 0,
            "dtype": "float32",  # of the computation; parameters and statistics are float32
            "num_epochs": 8,
            "batch_size": 64,
            "optimizer": {
                "schedule": "one_cycle",
                "learning_rate": 0.05,  # the highest of the cycle
                "momentum": 0.9,
                "weight_decay": 1e-4,
            },
            "data": {
                "name": "digits",
                "image_size": 48,  # pixels, before cropping
                "crop_size": 40,  # what the net sees
                "random_shift": False,  # True: training crops at random offsets, too
            },
            "eval": {
                "batch_size": 64,
                "shift_range": 9,  # crops at offsets 0..8 on each axis
                "passes": 20,  # pairs of crops for each image
                "seed": 0,
            },
        }
    )
