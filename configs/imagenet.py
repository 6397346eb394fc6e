"""The base of all recipes, with the values of ResNets: 90 epochs, batch 256, steps by ten.

    python train.py --config configs/imagenet.py --config.model=resnet152_lpf4 \
        --config.data.path=ILSVRC2012 --workdir runs/resnet152_lpf4

trains any model of `aa_flax.list_models()`; the published recipes have separate files.
`aa_flax/config.py` explains every value, with its range.
"""

from typing import cast

from ml_collections import ConfigDict

from aa_flax.config import Config
from aa_flax.errors import InputError


def get_config() -> Config:
    """Returns a `ConfigDict` for the command line, with the fields of `Config`."""
    return cast(Config, ConfigDict(Config().to_dict()))


def recipe(model: str, variant: str = "") -> Config:
    """Returns the base recipe of a model; `variant` "baseline": of it without antialiasing."""
    if variant not in ("", "baseline"):
        raise InputError(f"unknown variant {variant!r} of a recipe; known: baseline")
    config = get_config()
    config.model = model.partition("_lpf")[0] if variant else model
    config.name = config.model
    return config
