"""One update: learning-rate schedules, the optimizer, the compiled step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from aa_flax.config import OptimizerConfig
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import replicate, replicated
from aa_flax.weights.train_state import TrainState, split_model

OnDevice = dict[str, Any]  # a batch of `training_batches`, moved by `put_batch`


def init_state(
    model: Classifier, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the state at step 0, on every device of the mesh; the model keeps its arrays."""
    _, params, batch_stats, random_state = split_model(model)

    @jax.jit  # one program instead of one for each shape
    def initial(params, batch_stats, random_state):
        opt_state = optimizer.init(params)
        state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, random_state, opt_state)
        return jax.tree.map(jnp.copy, state)  # a step donates its state; the model must not lose it

    return replicate(initial(params, batch_stats, random_state), mesh)


def make_schedule(
    options: OptimizerConfig, *, batch_size: int, num_epochs: int, steps_per_epoch: int
) -> optax.Schedule:
    """Returns the learning rate at each step, by `options.schedule`:

    - `step`: times `step_factor` (0.1) every `step_epochs` (30) epochs;
    - `cosine`: 0.5 (1 + cos(pi epoch / num_epochs)) (Loshchilov and Hutter 2017); it changes once
      an epoch as the published models were trained, or with `per_step` every step;
    - `one_cycle` (Smith and Topin 2018): every step, along a cosine from a 25th of the rate up to
      it over the first 30 % of training, along another down to almost zero.

    All start from `learning_rate`, with `scale_lr` times batch_size / 256 (Goyal et al. 2017). Over
    the first `warmup_epochs` the rate is multiplied by a factor that grows every step, linearly up
    to 1 (same paper).
    """
    peak = options.learning_rate * (batch_size / 256 if options.scale_lr else 1.0)

    def cosine(step):
        whole = jnp.floor_divide(step, steps_per_epoch).astype(jnp.float32)
        epoch = step / steps_per_epoch if options.per_step else whole
        return peak * (0.5 * (1 + jnp.cos(jnp.pi * epoch / num_epochs)))

    schedule: optax.Schedule = {
        "step": lambda: optax.exponential_decay(
            peak, options.step_epochs * steps_per_epoch, options.step_factor, staircase=True
        ),
        "cosine": lambda: cosine,
        "one_cycle": lambda: optax.cosine_onecycle_schedule(num_epochs * steps_per_epoch, peak),
    }[options.schedule]()
    warmup = options.warmup_epochs * steps_per_epoch
    if warmup == 0:
        return schedule
    return lambda step: schedule(step) * jnp.minimum(1.0, (step + 1) / warmup)


def make_optimizer(
    options: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns SGD with momentum and weight decay as in torch: decay is added to the gradient.

    Every parameter decays, as in the original; without `decay_norm_and_bias` only kernels do.
    """

    def is_kernel(params):  # all other parameters are vectors
        return jax.tree.map(lambda x: x.ndim > 1, params)

    return optax.chain(
        optax.add_decayed_weights(
            options.weight_decay, None if options.decay_norm_and_bias else is_kernel
        ),
        optax.sgd(schedule, momentum=options.momentum),
    )


def make_train_step(
    model: Classifier,
    optimizer: optax.GradientTransformation,
    preprocess: Callable[[OnDevice], Array],
    *,
    schedule: optax.Schedule,
    mesh: Mesh,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    accumulation_steps: int = 1,
    accumulate: str = "mean",
    batch_stat_groups: int = 1,
) -> Callable[[TrainState, OnDevice], tuple[TrainState, dict[str, Array]]]:
    """Compiles `(state, batch) -> (state, metrics)`, one update of the optimizer.

    Args:
        preprocess: computes a batch's float images `(N, H, W, 3)`, on the device.
        schedule: of the optimizer, to report the learning rate.
        mesh: the batch is split over its devices; the results are on each of them.
        label_smoothing: the mass that targets of labels spread over all classes.
        temperature: of a batch with `target`, a teacher's probabilities, which replace labels.
        accumulation_steps: number of micro-batches that the batch is processed in, one after
            another, for one update. Each is normalised by its own batch statistics; running
            statistics are updated by each.
        accumulate: `mean` of their gradients, that of the whole batch; or `sum`, as in the
            original, which multiplies the learning rate by their number.
        batch_stat_groups: parts of a (micro-)batch that are normalised separately, as torch's
            DataParallel does on each GPU; running statistics are updated by their mean.

    Returns:
        The step. It donates its state: the arrays of the given one are deleted. `metrics`: `loss`
        and `correct` (the class of the label or target), sums over the batch; `learning_rate`;
        `gradient_norm`, of the accumulated gradient.
    """
    model.train()
    graphdef, *_ = split_model(model)
    model.eval()

    def forward(params, batch_stats, random_state, images):
        merged: Any = nnx.merge(graphdef, params, batch_stats, random_state, copy=True)
        logits = merged(images).astype(jnp.float32)
        _, _, batch_stats, random_state = split_model(merged)
        return logits, batch_stats, random_state

    if batch_stat_groups > 1:
        forward = _in_groups(forward, batch_stat_groups)

    def losses_of(logits: Array, batch: OnDevice) -> tuple[Array, Array]:
        if "target" in batch:
            losses = distillation_loss(logits, batch["target"], temperature)
            return losses, batch["target"].argmax(-1)
        targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
        targets = optax.smooth_labels(targets, label_smoothing)
        return optax.softmax_cross_entropy(logits, targets), batch["label"]

    def loss_fn(params, batch_stats, random_state, batch):
        logits, *state = forward(params, batch_stats, random_state, preprocess(batch))
        losses, classes = losses_of(logits, batch)
        correct = (logits.argmax(-1) == classes).sum()
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


def distillation_loss(
    logits: Float[Array, "N classes"], target: Float[Array, "N classes"], temperature: float
) -> Float[Array, " N"]:
    """Returns `T**2 KL(target || softmax(logits / T))`, the divergence from a teacher's answers.

    Args:
        target: the teacher's probabilities at the same temperature T.
        temperature: T. The square keeps the size of gradients independent of it.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, Sec. 2.

    Examples:
        >>> import jax.numpy as jnp
        >>> distillation_loss(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), 1.0).round(3).tolist()
        [0.693]
    """
    return temperature**2 * optax.kl_divergence(jax.nn.log_softmax(logits / temperature), target)


def _accumulated(gradient: Callable, count: int, *, average: bool) -> Callable:
    """Returns a function of gradient, state and summed metrics of a batch in `count` micro-batches.

    Micro-batch i is every `count`-th image from the i-th on, so that each device has an equal part
    of each micro-batch and none of its images moves.
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
    """Returns the forward pass of equal parts of a batch, with separate statistics and dropout."""

    def is_key(x: Array) -> bool:
        return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)

    def for_each_group(x: Array) -> Array:
        if is_key(x):  # another key for each group, from the same counter
            return jax.vmap(jax.random.fold_in, (None, 0))(x, jnp.arange(groups))
        return jnp.broadcast_to(x, (groups, *x.shape))

    def grouped(params, batch_stats, random_state, images):
        parts = images.reshape(groups, -1, *images.shape[1:])
        randoms = jax.tree.map(for_each_group, random_state)
        logits, stats, counted = jax.vmap(forward, (None, None, 0, 0))(
            params, batch_stats, randoms, parts
        )
        counted = jax.tree.map(
            lambda old, new: old if is_key(old) else new[0], random_state, counted
        )
        stats = jax.tree.map(lambda x: x.mean(0), stats)
        return logits.reshape(-1, logits.shape[-1]), stats, counted

    return grouped
