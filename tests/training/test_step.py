"""One update: gradients, statistics and metrics of a step, schedules and the optimizer."""

import collections
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from aa_flax import create_model
from aa_flax.cli import recipe_names
from aa_flax.configs import digits_resnet18, imagenet
from aa_flax.runtime import data_mesh, put_batch
from aa_flax.training.step import init_state, make_optimizer, make_schedule, make_train_step
from aa_flax.transform.jaxpr import programs
from aa_flax.weights.train_state import split_model
from benchmarks.reference import abstract_model
from tests.training.tiny import TinyNet

LR = 0.1


def batch(rng, size=16):
    images = rng.standard_normal((size, 12, 12, 3), np.float32)
    return {"image": images, "label": rng.integers(0, 10, size).astype(np.int32)}


def after_steps(model, batches, devices=1, rate=LR, **options):
    """Returns the state after a step on each batch, and the last step's metrics."""
    mesh = data_mesh(jax.devices()[:devices])
    optimizer = optax.sgd(rate, momentum=0.9)
    step = make_train_step(
        model,
        optimizer,
        lambda batch: batch["image"],
        schedule=optax.constant_schedule(rate),
        mesh=mesh,
        **options,
    )
    state, metrics = init_state(model, optimizer, mesh), {}
    for each in batches:
        state, metrics = step(state, put_batch(each, mesh))
    return state, metrics


def tiny(**options):
    return TinyNet(**{"batch_norm": False, "dropout": 0.0, **options}, rngs=nnx.Rngs(0))


def assert_close(tree, expected, rtol):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()))


def test_accumulated_micro_batches_equal_the_large_batch(rng):
    batches = [batch(rng) for _ in range(3)]
    whole, metrics = after_steps(tiny(), batches)
    parts, summed = after_steps(tiny(), batches, accumulation_steps=4)
    assert_close(parts.params, whole.params, 1e-6)
    for name in metrics:
        assert float(summed[name]) == pytest.approx(float(metrics[name]), rel=1e-5), name


def test_summed_gradients_are_the_mean_times_the_micro_batches(rng):
    batches = [batch(rng) for _ in range(3)]
    summed, _ = after_steps(tiny(), batches, accumulation_steps=4, accumulate="sum")
    larger_rate, _ = after_steps(tiny(), batches, accumulation_steps=4, rate=4 * LR)
    assert_close(summed.params, larger_rate.params, 1e-6)


def test_statistics_run_from_one_micro_batch_to_the_next_as_in_torch(rng):
    model, data = tiny(batch_norm=True), batch(rng)
    state, _ = after_steps(model, [data], accumulation_steps=4)
    reference = torch.nn.BatchNorm2d(4)
    for i in range(4):
        maps = model.conv(data["image"][i::4])
        reference(torch.tensor(np.asarray(maps).transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(state.batch_stats["bn"]["mean"][...], reference.running_mean, 1e-4)
    np.testing.assert_allclose(state.batch_stats["bn"]["var"][...], reference.running_var, 1e-5)


def test_groups_are_normalised_each_by_its_own_statistics(rng):
    data = batch(rng)
    grouped, _ = after_steps(tiny(batch_norm=True), [data], batch_stat_groups=2)
    halves = [{k: v[i : i + 8] for k, v in data.items()} for i in (0, 8)]
    apart = [after_steps(tiny(batch_norm=True), [half])[0] for half in halves]
    for part in ("params", "batch_stats"):  # equal halves: the batch's gradient is their mean
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *(getattr(s, part) for s in apart))
        assert_close(getattr(grouped, part), mean, 1e-5)
    together, _ = after_steps(tiny(batch_norm=True), [data])
    with pytest.raises(AssertionError):
        assert_close(grouped.params, together.params, 1e-5)


def test_groups_drop_values_of_their_own_and_count_once(rng):
    half = batch(rng, 8)
    twice = {k: np.concatenate([v, v]) for k, v in half.items()}
    model = tiny(dropout=0.5)
    grouped, grouped_metrics = after_steps(model, [twice], batch_stat_groups=2)
    alone, metrics = after_steps(model, [half])
    assert float(grouped_metrics["loss"]) != pytest.approx(2 * float(metrics["loss"]), rel=1e-4)
    for a, b in zip(
        jax.tree.leaves(grouped.random_state), jax.tree.leaves(alone.random_state), strict=True
    ):
        assert a.dtype == b.dtype
        assert (a == b).all()


@pytest.mark.parametrize("options", [{}, {"accumulation_steps": 2}, {"batch_stat_groups": 2}])
def test_two_devices_compute_what_one_does(rng, options):
    batches = [batch(rng) for _ in range(10)]
    model = tiny(batch_norm=True, dropout=0.3)
    one, _ = after_steps(model, batches, devices=1, **options)
    two, _ = after_steps(model, batches, devices=2, **options)
    assert_close(two.params, one.params, 1e-5)
    assert_close(two.batch_stats, one.batch_stats, 1e-5)


def test_label_smoothing_is_torchs(rng):
    data = batch(rng)
    _, metrics = after_steps(tiny(), [data], label_smoothing=0.1)
    logits = torch.tensor(np.asarray(tiny()(data["image"])))
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    expected = loss(logits, torch.tensor(data["label"], dtype=torch.int64))
    assert float(metrics["loss"]) == pytest.approx(expected.item(), rel=1e-5)


def test_bfloat16_computes_in_half_precision_and_keeps_float32_state(rng):
    data = batch(rng)
    half, _ = after_steps(tiny(batch_norm=True, dtype=jnp.bfloat16), [data] * 5)
    full, _ = after_steps(tiny(batch_norm=True), [data] * 5)
    for leaf in jax.tree.leaves((half.params, half.batch_stats, half.opt_state)):
        assert leaf.dtype == jnp.float32 or leaf.ndim == 0
    assert_close(half.params, full.params, 0.05)
    with pytest.raises(AssertionError):
        assert_close(half.params, full.params, 1e-5)


@pytest.mark.parametrize("name", ["resnet18_lpf4", "vgg11_lpf4"])
def test_in_bfloat16_sums_statistics_and_losses_are_float32(name):
    model = create_model(name, num_classes=10, dtype=jnp.bfloat16)
    mesh, optimizer = data_mesh(jax.devices()[:1]), optax.sgd(LR)
    schedule = optax.constant_schedule(LR)
    step = make_train_step(
        model, optimizer, lambda batch: batch["image"], schedule=schedule, mesh=mesh
    )
    data = {
        "image": jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((4,), jnp.int32),
    }
    program = jax.make_jaxpr(step)(init_state(model, optimizer, mesh), data)
    types = collections.defaultdict(set)
    for part in programs(program.jaxpr):
        for eqn in part.eqns:
            types[eqn.primitive.name].add(eqn.outvars[0].aval.dtype.name)
    assert "bfloat16" in types["aa_flax_kernel"]  # convolutions, blurs
    for primitive in ("reduce_sum", "exp", "log"):
        assert types[primitive] - {"int32"} == {"float32"}, primitive


def residual_bytes(model, size):
    """Returns the bytes that training keeps for the backward pass, counted in the trace."""
    model.train()
    graphdef, params, batch_stats, random_state = split_model(model)

    def kept(images, params, *rest):
        def loss(params):
            return nnx.merge(graphdef, params, *rest, copy=True)(images).sum()

        return jax.vjp(loss, params)[1]

    images = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32)
    kept = jax.eval_shape(kept, images, params, batch_stats, random_state)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)]
    return sum(sizes)


@pytest.mark.parametrize(
    "name",
    ["resnet18_lpf4", "vgg11_bn_lpf4", pytest.param("mobilenet_v2_lpf4", marks=pytest.mark.slow)],
)
def test_a_rematerialised_model_keeps_less_than_half_for_the_backward_pass(name):
    model = abstract_model(name, num_classes=10)
    parameters = sum(x.size * 4 for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    whole = residual_bytes(model, 64) - parameters
    model.remat = True
    assert residual_bytes(model, 64) - parameters < 0.5 * whole


def test_rematerialisation_changes_neither_gradients_nor_statistics(rng):
    batches = [batch(rng) for _ in range(3)]
    model = tiny(batch_norm=True, dropout=0.3)
    kept, _ = after_steps(model, batches)
    model.remat = True
    again, _ = after_steps(model, batches)
    assert_close(again.params, kept.params, 1e-6)
    assert_close(again.batch_stats, kept.batch_stats, 1e-6)
    assert_close(again.random_state["dropout"]["rngs"]["count"][...], 3, 0)


def schedule_of(config, steps):
    sizes = {"batch_size": config.batch_size, "num_epochs": config.num_epochs}
    return make_schedule(config.optimizer, steps_per_epoch=steps, **sizes)


def rates(config, steps):
    """Returns the learning rate at every step of every epoch: (num_epochs, steps)."""
    schedule = jax.jit(jax.vmap(schedule_of(config, steps)))
    return np.asarray(schedule(jnp.arange(config.num_epochs * steps))).reshape(-1, steps)


def torchs_rates(config, scheduler, **options):
    """Returns the learning rates of torch's scheduler, which steps once per epoch."""
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.optimizer.learning_rate)
    moving, found = scheduler(sgd, **options), []
    for _ in range(config.num_epochs):
        found.append(moving.get_last_lr()[0])
        sgd.step()
        moving.step()
    return np.array(found)


@pytest.mark.parametrize("recipe", recipe_names())
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


def test_the_rate_scales_with_the_batch_on_request():
    config = imagenet.get_config()
    plain = rates(config, 2)
    config.optimizer.scale_lr = True
    np.testing.assert_array_equal(rates(config, 2), plain)
    config.batch_size = 1024
    np.testing.assert_allclose(rates(config, 2), 4 * plain, rtol=1e-6)


def test_weight_decay_excludes_all_but_kernels_on_request():
    config = imagenet.get_config()
    params = {"kernel": jnp.ones((3, 3, 2, 4)), "scale": jnp.ones(4), "bias": jnp.ones(4)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for everything in (True, False):
        config.optimizer.decay_norm_and_bias = everything
        optimizer = make_optimizer(config.optimizer, optax.constant_schedule(1.0))
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        for name, update in updates.items():
            decay = 1e-4 if everything or name == "kernel" else 0.0
            np.testing.assert_allclose(update, np.full_like(update, -decay))


def test_one_cycle_equals_torchs_at_every_step():
    config = digits_resnet18.get_config()
    steps = 21
    schedule = schedule_of(config, steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    total = config.num_epochs * steps
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.optimizer.learning_rate, total, cycle_momentum=False
    )
    for step in range(total - 1):
        # The peak is at step 0.3 n - 1 in torch and 0.3 n in optax: they may differ by a step.
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
    optimizer = make_optimizer(config.optimizer, lambda step: 0.3)
    state = optimizer.init(params)
    for _ in range(5):
        gradient = rng.standard_normal(5, np.float32)
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params += jnp.asarray(updates)
        weights.grad = torch.tensor(gradient)
        reference.step()
    np.testing.assert_allclose(params, weights.detach().numpy(), rtol=1e-5)
