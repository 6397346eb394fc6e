import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from aa_flax import InputError, create_model
from aa_flax.runtime import data_mesh, put_batch
from aa_flax.training.state import init_state, make_train_step, split_model
from tests.training.tiny import TinyNet

LR = 0.1


def batch(rng, size=16):
    images = rng.standard_normal((size, 12, 12, 3), np.float32)
    return {"image": images, "label": rng.integers(0, 10, size).astype(np.int32)}


def after_steps(model, batches, devices=1, rate=LR, **options):
    """The state after a step on each batch, and the last step's metrics."""
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


def residual_bytes(model, size):
    """What the forward pass of training keeps for the backward pass, counted in the trace."""
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


@pytest.mark.parametrize("name", ["resnet18_lpf4", "vgg11_bn_lpf4", "mobilenet_v2_lpf4"])
def test_a_rematerialised_net_keeps_less_than_half_for_the_backward_pass(name):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=10))
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


def test_an_unknown_accumulation_is_refused():
    with pytest.raises(InputError, match="'add'; known: mean, sum"):
        after_steps(tiny(), [], accumulate="add")
