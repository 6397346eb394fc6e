"""What training changes, and the compiled step that changes it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import replicate, replicated

OnDevice = dict[str, Any]  # a batch of `training_batches`, once `put_batch` has moved it


class TrainState(NamedTuple):
    """All that a run carries from step to step, and so all that a checkpoint holds.

    Attributes:
        step: updates made so far, which is also the position in the data.
        params: `nnx.Param` values. batch_stats: `nnx.BatchStat` values.
        random_state: what is left of the model: the keys and counters of its dropout.
        opt_state: the optimizer's.
    """

    step: Array
    params: nnx.State
    batch_stats: nnx.State
    random_state: nnx.State
    opt_state: Any


def init_state(model: Classifier, optimizer: optax.GradientTransformation, mesh: Mesh):
    """The state at step 0, on every device of the mesh; the model keeps its own arrays."""
    _, params, batch_stats, random_state = split_model(model)

    @jax.jit  # one program, not one for each shape
    def initial(params, batch_stats, random_state):
        opt_state = optimizer.init(params)
        state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, random_state, opt_state)
        return jax.tree.map(jnp.copy, state)  # a step consumes its state

    return replicate(initial(params, batch_stats, random_state), mesh)


def split_model(model: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """Graph definition, parameters, batch statistics and random state."""
    graphdef, params, batch_stats, random_state = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return graphdef, params, batch_stats, random_state


def update_model(model: Classifier, state: TrainState) -> Classifier:
    """Copies a state's variables into the model, in place."""
    nnx.update(model, state.params, state.batch_stats, state.random_state)
    return model


def make_train_step(
    model: Classifier,
    optimizer: optax.GradientTransformation,
    preprocess: Callable[[OnDevice], Array],
    *,
    schedule: optax.Schedule,
    mesh: Mesh,
    label_smoothing: float = 0.0,
    accumulation_steps: int = 1,
    accumulate: str = "mean",
    batch_stat_groups: int = 1,
) -> Callable[[TrainState, OnDevice], tuple[TrainState, dict[str, Array]]]:
    """Compiles `(state, batch) -> (state, metrics)`, one update of the optimizer.

    Args:
        preprocess: a batch's float images `(N, H, W, 3)`, computed on the device.
        schedule: the optimizer's, to report the learning rate.
        mesh: the batch is split over its devices; all results are on every one of them.
        accumulation_steps: micro-batches that the batch is taken in, one after another. They share
            one update. Each normalises by its own batch statistics, which run from one to the next.
        accumulate: `mean` of their gradients: that of the whole batch; or `sum`, as the original
            does, which multiplies the learning rate by their number.
        batch_stat_groups: parts of a (micro-)batch that are normalised each by its own statistics,
            as torch's DataParallel does on each GPU; running statistics take the parts' mean.

    Returns:
        The step. It consumes the state it is given. `metrics`: `loss` and `correct`, sums over the
        batch; `learning_rate`; `gradient_norm`, of the accumulated gradient.

    Raises:
        InputError: an unknown `accumulate`.
    """
    if accumulate not in ("mean", "sum"):
        raise InputError(f"unknown config.optimizer.accumulate {accumulate!r}; known: mean, sum")
    model.train()
    graphdef, *_ = split_model(model)
    model.eval()

    def forward(params, batch_stats, random_state, images):
        net: Any = nnx.merge(graphdef, params, batch_stats, random_state, copy=True)
        logits = net(images).astype(jnp.float32)
        _, _, batch_stats, random_state = split_model(net)
        return logits, batch_stats, random_state

    if batch_stat_groups > 1:
        forward = _in_groups(forward, batch_stat_groups)

    def loss_fn(params, batch_stats, random_state, batch):
        logits, *state = forward(params, batch_stats, random_state, preprocess(batch))
        targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
        targets = optax.smooth_labels(targets, label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        correct = (logits.argmax(-1) == batch["label"]).sum()
        return losses.mean(), (state, {"loss": losses.sum(), "correct": correct})

    gradient = jax.grad(loss_fn, has_aux=True)
    if accumulation_steps > 1:
        gradient = _accumulated(gradient, accumulation_steps, average=accumulate == "mean")

    def train_step(state: TrainState, batch: OnDevice):
        gradients, ((batch_stats, random_state), metrics) = gradient(
            state.params, state.batch_stats, state.random_state, batch
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        params: Any = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, random_state, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=replicated(mesh))


def _accumulated(gradient: Callable, count: int, *, average: bool) -> Callable:
    """Gradient, state and summed metrics of a batch in `count` micro-batches.

    Micro-batch i holds every `count`-th image from the i-th on: an equal share of each device's.
    """

    def accumulated(params, batch_stats, random_state, batch):
        def add_micro_batch(carry, micro_batch):
            state, total = carry
            gradients, (state, metrics) = gradient(params, *state, micro_batch)
            return (state, jax.tree.map(jnp.add, total, gradients)), metrics

        micro_batches = jax.tree.map(
            lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch
        )
        start = [batch_stats, random_state], jax.tree.map(jnp.zeros_like, params)
        (state, total), metrics = jax.lax.scan(add_micro_batch, start, micro_batches)
        if average:
            total = jax.tree.map(lambda x: x / count, total)
        return total, (state, jax.tree.map(lambda x: x.sum(0), metrics))

    return accumulated


def _in_groups(forward: Callable, groups: int) -> Callable:
    """The forward pass of equal parts of a batch, each with statistics and dropout of its own."""

    def grouped(params, batch_stats, random_state, images):
        parts = images.reshape(groups, -1, *images.shape[1:])
        randoms = jax.tree.map(lambda x: _for_each_group(x, groups), random_state)
        logits, stats, counted = jax.vmap(forward, (None, None, 0, 0))(
            params, batch_stats, randoms, parts
        )
        counted = jax.tree.map(
            lambda old, new: old if _is_key(old) else new[0], random_state, counted
        )
        stats = jax.tree.map(lambda x: x.mean(0), stats)
        return logits.reshape(-1, logits.shape[-1]), stats, counted

    return grouped


def _for_each_group(x: Array, groups: int) -> Array:
    if _is_key(x):
        return jax.vmap(jax.random.fold_in, (None, 0))(x, jnp.arange(groups))
    return jnp.broadcast_to(x, (groups, *x.shape))


def _is_key(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
