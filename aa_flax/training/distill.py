"""Distillation: a model trains on another one's answers, so that images need no labels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from aa_flax.config import Config
from aa_flax.data.pixels import preprocess_batch
from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import build
from aa_flax.runtime import log_line, replicate
from aa_flax.training.step import OnDevice
from aa_flax.weights.building import complete
from aa_flax.weights.locate import WeightsSource, describe

# The sequence R2 (Roberts 2018): its first points, however many, spread evenly over a square.
_R2 = (0.7548776662466927, 0.5698402909980532)


def load_teacher(source: WeightsSource, config: Config, num_classes: int) -> Classifier:
    """Loads the model of the weights of `config.distill.teacher`, in evaluation mode.

    Raises:
        InputError: the model has no last layer, or other classes than the data.
    """
    weights = source.load_relative({})
    if weights.num_classes != num_classes:
        found = f"{weights.num_classes} classes" if weights.num_classes else "no last layer"
        raise InputError(
            f"the teacher {config.distill.teacher} has {found}, the data has {num_classes} "
            "classes; give a teacher of these, or list its classes in a file: "
            "--config.data.class_order"
        )
    options = {"dtype": config.dtype, **(weights.options or {})}
    teacher = complete(weights, partial(build, weights.model, **options), None, nnx.Rngs(0))
    log_line(f"learning from {teacher.name}: {describe(source.description())}")
    return teacher


def taught(
    train_step: Callable[..., Any], teacher: Classifier, config: Config, mesh: Mesh
) -> Callable[..., Any]:
    """Returns a step of `make_train_step` that trains on the teacher's answers, not on labels.

    They are probabilities, softened by `distill.temperature`, for the crop that the student sees;
    or their mean over `distill.shifts` crops, the first of which is that one.
    """
    graphdef, state = nnx.split(teacher)
    state, data, options = replicate(state, mesh), config.data, config.distill
    room = data.image_size - data.crop_size + 1

    @jax.jit
    def answer(state, batch: OnDevice, i: int) -> Float[Array, "N classes"]:
        if "offset" in batch:
            batch = {**batch, "offset": shifted(batch["offset"], i, room)}
        logits = nnx.merge(graphdef, state)(preprocess_batch(batch, data))
        return jax.nn.softmax(logits.astype(jnp.float32) / options.temperature)

    def step(train_state, batch: OnDevice):
        answers = [answer(state, batch, i) for i in range(options.shifts)]
        return train_step(train_state, {**batch, "target": sum(answers) / options.shifts})

    return step


def shifted(offsets: Int[Array, "N 2"], i: int | Array, room: int) -> Int[Array, "N 2"]:
    """Returns the i-th of evenly spread offsets in `0 .. room - 1`; the 0-th are the given ones.

    All follow from the given ones, so that they are the same when a run resumes.

    Examples:
        >>> import jax.numpy as jnp
        >>> [shifted(jnp.array([[2, 8]]), i, 9).tolist() for i in range(3)]
        [[[2, 8]], [[8, 4]], [[6, 0]]]
    """
    moved = i * jnp.array(_R2) % 1 * room
    return (offsets + moved.astype(jnp.int32)) % room
