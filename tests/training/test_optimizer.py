import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aa_flax import InputError
from aa_flax.training.optimizer import make_optimizer, make_schedule
from configs import digits_resnet18


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
    with pytest.raises(InputError, match="'cosin'; known: one_cycle"):
        make_schedule(config, 10)
