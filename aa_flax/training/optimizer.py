"""Optimizer and learning-rate schedule of a config."""

import optax

from aa_flax.config import Config
from aa_flax.errors import InputError


def make_schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate at each step.

    `one_cycle` (Smith and Topin 2018) rises along a cosine from a 25th of `learning_rate` over the
    first 30 % of training and falls along another to almost zero.
    """
    steps = config.num_epochs * steps_per_epoch
    if config.optimizer.schedule == "one_cycle":
        return optax.cosine_onecycle_schedule(steps, config.optimizer.learning_rate)
    raise InputError(
        f"unknown config.optimizer.schedule {config.optimizer.schedule!r}; known: one_cycle"
    )


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with momentum and weight decay on every parameter, as torch computes it."""
    return optax.chain(
        optax.add_decayed_weights(config.optimizer.weight_decay),
        optax.sgd(schedule, momentum=config.optimizer.momentum),
    )
