"""Optimizer and learning-rate schedule of a config."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from aa_flax.config import Config
from aa_flax.errors import InputError, unknown


def make_schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate at each step, of `config.optimizer.schedule`:

    - `step`: times `step_factor` (0.1) every `step_epochs` (30) epochs;
    - `cosine`: 0.5 (1 + cos(pi epoch / num_epochs)) (Loshchilov and Hutter 2017); it moves once an
      epoch as the published nets were trained, or with `per_step` every step;
    - `one_cycle` (Smith and Topin 2018): every step, along a cosine from a 25th of the rate up to
      it over the first 30 % of training, along another down to almost zero.

    All start from `learning_rate`, with `scale_lr` times batch_size / 256 (Goyal et al. 2017). Over
    the first `warmup_epochs` the rate is multiplied by a factor that grows every step, linearly up
    to 1 (same paper).

    Raises:
        InputError: an unknown schedule.
    """
    options = config.optimizer
    peak = options.learning_rate * (config.batch_size / 256 if options.scale_lr else 1.0)
    epochs, steps = config.num_epochs, steps_per_epoch
    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "step": lambda: optax.exponential_decay(
            peak, options.step_epochs * steps, options.step_factor, staircase=True
        ),
        "cosine": lambda: _cosine(peak, epochs, steps, per_step=options.per_step),
        "one_cycle": lambda: optax.cosine_onecycle_schedule(epochs * steps, peak),
    }
    if options.schedule not in schedules:
        raise InputError(unknown("config.optimizer.schedule", options.schedule, [*schedules]))
    return _warmed_up(schedules[options.schedule](), config, steps)


def _cosine(
    peak: float, num_epochs: int, steps_per_epoch: int, *, per_step: bool
) -> optax.Schedule:
    def schedule(step):
        epoch = step / steps_per_epoch if per_step else jnp.floor_divide(step, steps_per_epoch)
        return peak * (0.5 * (1 + jnp.cos(jnp.pi * epoch / num_epochs)))

    return schedule


def _warmed_up(schedule: optax.Schedule, config: Config, steps_per_epoch: int) -> optax.Schedule:
    steps = config.optimizer.warmup_epochs * steps_per_epoch
    if steps == 0:
        return schedule
    return lambda step: schedule(step) * jnp.minimum(1.0, (step + 1) / steps)


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with momentum and weight decay as torch computes them: decay joins the gradient.

    Every parameter decays, as in the original; without `decay_norm_and_bias` only kernels do.
    """
    options = config.optimizer
    mask = None if options.decay_norm_and_bias else _is_kernel
    return optax.chain(
        optax.add_decayed_weights(options.weight_decay, mask),
        optax.sgd(schedule, momentum=options.momentum),
    )


def _is_kernel(params):
    """True for the kernels of convolutions and linear layers: all else is a vector."""
    return jax.tree.map(lambda x: x.ndim > 1, params)
