"""Distillation: a model trains on another one's answers, so that images need no labels.

Runs of `train.py` distil models of this package; `distill` trains any function of parameters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import isfinite
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from aa_flax.config import Config
from aa_flax.data.pixels import preprocess_batch
from aa_flax.errors import InputError, choice, integer, real
from aa_flax.models.classifier import Classifier
from aa_flax.models.match import name_of, running_statistics
from aa_flax.models.registry import build
from aa_flax.runtime import log_line, replicate
from aa_flax.training.step import OnDevice, distillation_loss
from aa_flax.transform.canonical import Layout
from aa_flax.weights.building import complete
from aa_flax.weights.locate import WeightsSource, describe

# The sequence R2 (Roberts 2018): its first points, however many, spread evenly over a square.
_R2 = (0.7548776662466927, 0.5698402909980532)

Params = TypeVar("Params")
Images = Float[Array, "N ..."]


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


def shifted(
    offsets: Int[Array, "*N 2"], i: int | Array, room: int | Int[Array, "2"]
) -> Int[Array, "*N 2"]:
    """Returns the i-th of evenly spread offsets in `0 .. room - 1`; the 0-th are the given ones.

    All follow from the given ones, so that they are the same when a run resumes.

    Examples:
        >>> import jax.numpy as jnp
        >>> [shifted(jnp.array([[2, 8]]), i, 9).tolist() for i in range(3)]
        [[[2, 8]], [[8, 4]], [[6, 0]]]
    """
    moved = i * jnp.array(_R2) % 1 * room
    return (offsets + moved.astype(jnp.int32)) % room


def distill(
    student: Callable[[Params, Images], Any],
    teacher: Callable[[Images], Any],
    params: Params,
    images: Iterable[Images],
    *,
    optimizer: optax.GradientTransformation | None = None,
    temperature: float = 1.0,
    crop_size: int | None = None,
    shifts: int = 1,
    layout: Layout = "NHWC",
    map_weight: float = 0.0,
    frozen: Callable[[str], bool] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Params:
    """Trains a function on the answers of another one, on images without labels.

    Each batch is one step on the mean of `distillation_loss`, `T**2 KL(p_t || softmax(z / T))`, for
    the student's logits `z` and the teacher's probabilities `p_t = softmax(z_t / T)`. Steps are
    compiled; arrays that are sharded stay so. Nothing is stored and a stopped call does not resume:
    for checkpoints, schedules by epoch and logs use `train.py` with `config.distill`.

    Args:
        student: `f(params, images)` with logits `(N, classes)`, in evaluation mode: a function of
            JAX, for example `antialias(f)` of a function from `from_torch`.
        teacher: a function of JAX from the same images to logits of the same classes, for example
            `partial(f, params)`.
        params: the student's parameters to start with, any pytree; it is not changed.
        images: batches of normalised images, floats, each used once: an epoch, or several.
        optimizer: default: `optax.adam(1e-4)`. It gets a dictionary of the arrays that are trained,
            by name.
        temperature: T. Above 1, the teacher's small probabilities have more weight.
        crop_size: side of the crops, in pixels, that are cut of larger images: at each step at the
            next one of offsets that are evenly spread. Default: images as they are.
        shifts: number of crops over which the teacher's probabilities are averaged: the student's,
            and others that are evenly spread; each is a forward pass.
        layout: of images that are cropped: `NHWC`, or `NCHW`, as for functions of `from_torch`.
        map_weight: weight of the distance of feature maps; 0: none. Both functions then return a
            pair, logits and a pytree of maps; the distance is the mean over the maps of
            `|x - x_t|**2 / |x_t|**2`, of the student's crops.
        frozen: from the name of an array (`layer1.bias`) to whether it keeps its value. Default:
            the running statistics of batch norms, which are found as by `match_statistics`. Arrays
            that are not floats keep theirs in any case.
        on_step: called with the number of each step, from 1, and its loss, once the next step runs.

    Returns:
        Trained parameters, in the pytree of `params`.

    Raises:
        InputError: an invalid option, no images, images that are not floats or no larger than the
            crops, outputs that are not logits of the same images and classes, nothing to train, a
            parameter that may be a statistic or not, or a loss that is not finite.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.

    Examples:
        >>> import aa_flax, jax, jax.numpy as jnp, optax
        >>> def f(params, images):
        ...     return images.mean((1, 2)) @ params["kernel"]
        >>> images = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
        >>> wanted = {"kernel": jnp.eye(3)}
        >>> params = aa_flax.distill(
        ...     f, lambda x: f(wanted, x), {"kernel": jnp.zeros((3, 3))}, 100 * [images],
        ...     optimizer=optax.adam(0.1),
        ... )
        >>> answers = [f(p, images).argmax(-1) for p in (params, wanted)]
        >>> bool((answers[0] == answers[1]).all())
        True
    """
    optimizer = optax.adam(1e-4) if optimizer is None else optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(f"optimizer must be one of optax, got a {type(optimizer).__name__}")
    task = _Task(student, teacher, optimizer, temperature, crop_size, shifts, layout, map_weight)
    stream = iter([] if hasattr(images, "shape") else images)
    if (first := next(stream, None)) is None:
        raise InputError(
            "distill takes an iterable of batches of images, and got none (one array is no "
            "iterable of batches, and an iterator that was used before has none left)"
        )
    task.check(first)
    crops = jax.eval_shape(task.crop, first, 0, 0)
    keeps = frozen or running_statistics(student, params, crops).__contains__
    trained = {name: jnp.copy(x) for name, x in _floats(params).items() if not keeps(name)}
    if not trained:
        raise InputError(
            "distill has nothing to train: no array of params is a float, or all are frozen"
        )
    state, answer = optimizer.init(trained), jax.jit(task.answer)
    update = jax.jit(task.update, donate_argnums=(0, 1))

    def report(step: int, loss: Array) -> None:
        _check_finite(float(loss), f"the loss of step {step}")
        if on_step is not None:
            on_step(step, float(loss))

    unread = []  # a loss is read when the next step is queued, so that the device does not wait
    for step, batch in enumerate(chain([first], stream), 1):
        task.check(batch)
        answers = [answer(batch, step, i) for i in range(shifts)]
        target = sum(probabilities for probabilities, _ in answers) / shifts
        trained, state, loss = update(trained, state, params, batch, step, target, answers[0][1])
        unread.append((step, loss))
        if len(unread) > 1:
            report(*unread.pop(0))
    report(*unread.pop())
    _check_finite(float(optax.tree.norm(trained)), "the norm of the trained parameters")
    return _with(params, trained)


@dataclass(frozen=True, eq=False)  # functions may have no hash
class _Task:
    """The options of `distill`, and what its steps compute."""

    student: Callable[[Any, Array], Any]
    teacher: Callable[[Array], Any]
    optimizer: optax.GradientTransformation
    temperature: float
    crop_size: int | None
    shifts: int
    layout: Layout
    map_weight: float

    def __post_init__(self):
        choice("layout", self.layout, Layout)
        real("map_weight", self.map_weight, least=0)
        if real("temperature", self.temperature, least=0) == 0:
            raise InputError("temperature must be above 0")
        if self.crop_size is not None:
            integer("crop_size", self.crop_size, least=1)
        if integer("shifts", self.shifts, least=1) > 1 and self.crop_size is None:
            raise InputError(
                f"shifts={self.shifts} averages over crops of larger images; give crop_size"
            )

    @property
    def axes(self) -> tuple[int, int]:
        return (1, 2) if self.layout == "NHWC" else (2, 3)

    def check(self, batch: Any) -> None:
        """Raises an InputError unless a batch contains images that can be cropped."""
        is_array = isinstance(batch, np.ndarray | jax.Array)
        if not is_array or not jnp.issubdtype(batch.dtype, jnp.floating) or not batch.size:
            kind = f"a {type(batch).__name__}"
            if is_array:
                kind = f"an array of {batch.dtype} {batch.shape}"
            raise InputError(
                f"distill takes batches of normalised images, arrays of floats, got {kind}; "
                "normalise them as for the model, and leave out labels"
            )
        if (size := self.crop_size) is None:
            return
        sides = [batch.shape[axis] for axis in self.axes] if batch.ndim == 4 else [0]
        if min(sides) < size or max(sides) == size:
            raise InputError(
                f"crop_size={size} cuts crops of larger images, {self.layout}; got a batch "
                f"{batch.shape}"
            )

    def crop(self, batch: Array, step: int | Array, i: int | Array) -> Array:
        """Cuts the i-th crop of a step; the 0-th is the student's."""
        if (size := self.crop_size) is None:
            return batch
        room = jnp.array([batch.shape[axis] - size + 1 for axis in self.axes])
        offset = shifted(shifted(jnp.zeros(2, jnp.int32), step, room), i, room)
        for axis, start in zip(self.axes, offset, strict=True):
            batch = lax.dynamic_slice_in_dim(batch, start, size, axis)
        return batch

    def answer(self, batch: Array, step: Array, i: Array) -> tuple[Float[Array, "N classes"], Any]:
        """Computes the teacher's probabilities, and its maps, for a crop."""
        images = self.crop(batch, step, i)
        logits, maps = self.outputs("teacher", self.teacher(images), len(images))
        return jax.nn.softmax(logits / self.temperature), maps

    def outputs(self, who: str, outputs: Any, count: int) -> tuple[Float[Array, "N classes"], Any]:
        """Returns logits in float32, and maps if any are compared."""
        expected = f"logits ({count}, classes)"
        if self.map_weight:
            expected = f"a pair of {expected} and maps, for map_weight"
        is_pair = isinstance(outputs, tuple) and len(outputs) == 2
        logits, maps = outputs if is_pair else (outputs, ())
        shape = getattr(logits, "shape", ())
        if is_pair != bool(self.map_weight) or len(shape) != 2 or shape[0] != count:
            found = f"logits {shape} and maps" if is_pair else f"an array {shape}"
            raise InputError(f"the {who} returns {found}; it has to return {expected}")
        return jnp.asarray(logits, jnp.float32), maps

    def loss(self, params: Any, images: Array, target: Array, wanted: Any) -> Float[Array, ""]:
        logits, maps = self.outputs("student", self.student(params, images), len(images))
        shapes = [jax.tree.map(jnp.shape, pair) for pair in ((logits, maps), (target, wanted))]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"the student's outputs are of shapes {shapes[0]}, the teacher's {shapes[1]}; both "
                "must have the same classes (and maps)"
            )
        distances = [
            jnp.square(x - y).sum() / jnp.square(y).sum()
            for x, y in zip(jax.tree.leaves(maps), jax.tree.leaves(wanted), strict=True)
        ]
        distance = sum(distances) / max(len(distances), 1)
        losses = distillation_loss(logits, target, self.temperature)
        return losses.mean() + self.map_weight * distance

    def update(self, trained, state, params, batch, step, target, maps):
        """Returns new arrays, the optimizer's state, and the loss before the update."""

        def loss_of(trained: dict[str, Array]) -> Array:
            return self.loss(_with(params, trained), self.crop(batch, step, 0), target, maps)

        loss, gradients = jax.value_and_grad(loss_of)(trained)
        updates, state = self.optimizer.update(gradients, state, trained)
        return optax.apply_updates(trained, updates), state, loss


def _floats(params: Any) -> dict[str, Array]:
    """Returns the arrays of floats in a pytree, by name."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    is_float = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)  # noqa: E731
    return {name_of(path): x for path, x in paths if is_float(x)}


def _with(params: Any, arrays: dict[str, Array]) -> Any:
    """Returns a pytree with some of its arrays replaced, by name."""
    return jax.tree_util.tree_map_with_path(lambda path, x: arrays.get(name_of(path), x), params)


def _check_finite(value: float, name: str) -> None:
    if not isfinite(value):
        raise InputError(
            f"{name} is {value}; give a smaller learning rate, or look for images, parameters or "
            "a teacher's logits that are not finite"
        )
