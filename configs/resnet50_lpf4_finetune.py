"""ResNet-50 with 4-tap BlurPools, from the weights of the model without them: 60 epochs at 0.01.

    python train.py --config configs/resnet50_lpf4_finetune.py --config.data.path=ILSVRC2012

Published: top-1 77.41 %, consistency 91.32 %; 76.16 % and 89.20 % without antialiasing. These are
the last two thirds of the recipe from scratch; other models are fine-tuned likewise, with
`--config.model=NAME --workdir DIR`.
"""

from aa_flax.config import Config
from aa_flax.configs import imagenet


def get_config() -> Config:
    config = imagenet.recipe("resnet50_lpf4")
    config.name = "resnet50_lpf4_finetune"
    config.init_from = "baseline"
    config.num_epochs = 60
    config.optimizer.learning_rate = 0.01
    return config
