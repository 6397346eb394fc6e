"""What training changes, and the compiled step that changes it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from aa_flax.models.classifier import Classifier
from aa_flax.sharding import replicated


class TrainState(NamedTuple):
    """All that a run carries from step to step, and so all that a checkpoint holds.

    Attributes:
        step: updates made so far.
        params: `nnx.Param` values. rest: the other variables (batch statistics, random state).
        opt_state: the optimizer's.
    """

    step: Array
    params: nnx.State
    rest: nnx.State
    opt_state: Any


def init_state(model: Classifier, optimizer: optax.GradientTransformation, mesh: Mesh):
    """The state at step 0, on every device of the mesh."""
    _, params, rest = nnx.split(model, nnx.Param, ...)
    state = TrainState(jnp.zeros((), jnp.int32), params, rest, optimizer.init(params))
    return jax.device_put(state, replicated(mesh))


def make_train_step(
    model: Classifier,
    optimizer: optax.GradientTransformation,
    preprocess: Callable[[Any], Array],
) -> Callable:
    """Compiles `(state, batch) -> (state, metrics)`.

    Args:
        preprocess: `batch -> float images`, run on the device.

    Returns:
        The step. It consumes the state it is given. `metrics` are sums over the batch: `loss`,
        `correct`.
    """
    model.train()
    graphdef, *_ = nnx.split(model, nnx.Param, ...)
    model.eval()

    def loss_fn(params, rest, images, labels):
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits = model(images).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        _, _, rest = nnx.split(model, nnx.Param, ...)
        return losses.mean(), (rest, logits)

    @jax.jit(donate_argnums=0)
    def train_step(state: TrainState, batch: Any):
        images, labels = preprocess(batch), batch["label"]
        (loss, (rest, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.rest, images, labels
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        metrics = {"loss": loss * len(labels), "correct": (logits.argmax(-1) == labels).sum()}
        return TrainState(state.step + 1, params, rest, opt_state), metrics

    return train_step


def update_model(model: Classifier, state: TrainState) -> Classifier:
    """Copies a state's variables into the model, in place."""
    nnx.update(model, state.params, state.rest)
    return model
