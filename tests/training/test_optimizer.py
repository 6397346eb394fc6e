import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from aa_flax import InputError
from aa_flax.cli import recipe_names
from aa_flax.configs import digits_resnet18, imagenet
from aa_flax.training.optimizer import make_optimizer, make_schedule

RECIPES = recipe_names()


def rates(config, steps):
    """The learning rate at every step of every epoch: (num_epochs, steps)."""
    schedule = jax.jit(jax.vmap(make_schedule(config, steps)))
    return np.asarray(schedule(jnp.arange(config.num_epochs * steps))).reshape(-1, steps)


def torchs_rates(config, scheduler, **options):
    """What torch's scheduler, moved once an epoch, makes of the config's learning rate."""
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.optimizer.learning_rate)
    moving, found = scheduler(sgd, **options), []
    for _ in range(config.num_epochs):
        found.append(moving.get_last_lr()[0])
        sgd.step()
        moving.step()
    return np.array(found)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_epoch_of_every_recipe_has_the_rate_of_torchs_scheduler(recipe):
    config = importlib.import_module(f"aa_flax.configs.{recipe}").get_config()
    schedulers = torch.optim.lr_scheduler
    if config.optimizer.schedule == "step":
        options = {"step_size": config.optimizer.step_epochs, "gamma": config.optimizer.step_factor}
        expected = torchs_rates(config, schedulers.StepLR, **options)
    elif config.optimizer.schedule == "cosine":
        expected = torchs_rates(config, schedulers.CosineAnnealingLR, T_max=config.num_epochs)
    else:
        assert config.optimizer.schedule == "one_cycle"
        pytest.skip("moves every step: see test_one_cycle_equals_torchs_at_every_step")
    for column in rates(config, steps=3).T:  # the same at each step of an epoch
        np.testing.assert_allclose(column, expected, rtol=1e-6, atol=1e-8)


def test_a_cosine_per_step_equals_torchs_moved_every_step():
    config = imagenet.get_config()
    config.num_epochs, steps = 6, 5
    config.optimizer.update(schedule="cosine", per_step=True)
    found = rates(config, steps).ravel()
    config.num_epochs *= steps
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    expected = torchs_rates(config, cosine, T_max=config.num_epochs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_warm_up_rises_linearly_over_the_steps_of_its_epochs_and_leaves_the_rest():
    config = imagenet.get_config()
    plain = rates(config, 4)
    config.optimizer.warmup_epochs = 5
    warm = rates(config, 4)
    np.testing.assert_allclose(warm[:5].ravel(), 0.1 * np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_array_equal(warm[5:], plain[5:])


def test_the_rate_scales_with_the_batch_if_asked():
    config = imagenet.get_config()
    plain = rates(config, 2)
    config.optimizer.scale_lr = True
    np.testing.assert_array_equal(rates(config, 2), plain)
    config.batch_size = 1024
    np.testing.assert_allclose(rates(config, 2), 4 * plain, rtol=1e-6)


def test_weight_decay_leaves_out_all_but_kernels_if_asked():
    config = imagenet.get_config()
    params = {"kernel": jnp.ones((3, 3, 2, 4)), "scale": jnp.ones(4), "bias": jnp.ones(4)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for everything in (True, False):
        config.optimizer.decay_norm_and_bias = everything
        optimizer = make_optimizer(config, optax.constant_schedule(1.0))
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        for name, update in updates.items():
            decay = 1e-4 if everything or name == "kernel" else 0.0
            np.testing.assert_allclose(update, np.full_like(update, -decay))


def test_one_cycle_equals_torchs_at_every_step():
    config = digits_resnet18.get_config()
    steps = 21
    schedule = make_schedule(config, steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    total = config.num_epochs * steps
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.optimizer.learning_rate, total, cycle_momentum=False
    )
    for step in range(total - 1):
        # torch turns over at step 0.3 n - 1, optax at 0.3 n: they may be one step apart.
        near = [float(schedule(max(step + d, 0))) for d in (0, 1)]
        assert min(near) * 0.98 <= reference.get_last_lr()[0] <= max(near) * 1.02
        optimizer.step()
        reference.step()


def test_sgd_equals_torchs_with_momentum_and_weight_decay(rng):
    config = digits_resnet18.get_config()
    config.optimizer.weight_decay = 0.1
    weights = torch.tensor(rng.standard_normal(5, np.float32), requires_grad=True)
    reference = torch.optim.SGD([weights], lr=0.3, momentum=0.9, weight_decay=0.1)
    params = jnp.asarray(weights.detach().numpy())
    optimizer = make_optimizer(config, lambda step: 0.3)
    state = optimizer.init(params)
    for _ in range(5):
        gradient = rng.standard_normal(5, np.float32)
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params += jnp.asarray(updates)
        weights.grad = torch.tensor(gradient)
        reference.step()
    np.testing.assert_allclose(params, weights.detach().numpy(), rtol=1e-5)


def test_an_unknown_schedule_is_refused():
    config = digits_resnet18.get_config()
    config.optimizer.schedule = "cosin"
    with pytest.raises(InputError, match="'cosin'; did you mean cosine"):
        make_schedule(config, 10)
