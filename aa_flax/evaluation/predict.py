"""A uniform interface to models and other functions from images to logits."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped
from tqdm import tqdm

from aa_flax.data.pixels import normalise
from aa_flax.errors import InputError, first_line
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig


@dataclass(frozen=True)
class Predictor:
    """A function from images to logits, with its state.

    `function(state, images)` returns logits `(N, classes)` of normalised float32 images
    `(N, H, W, 3)`. It is compiled once for all predictors with an equal function.
    """

    function: Callable[[Any, Any], Any]
    state: Any = field(default=(), compare=False)
    # Not a function of JAX: it is called with NumPy arrays, one batch a call on each host.
    on_host: bool = False
    name: str = "predict"

    def maps(self, images: Array | np.ndarray) -> Float[Array, "N ..."]:
        """Computes the float32 output of any shape for images `(N, H, W, 3)` in 0..255."""
        if self.on_host:
            return jnp.asarray(self._read(np.asarray(normalised(images)), np.float32))
        return _compiled(self.function, self.state, images)

    def logits(self, images: Array | np.ndarray) -> Float[Array, "N classes"]:
        """Computes float32 logits of images `(N, H, W, 3)` with values in 0..255."""
        found = self.maps(images)
        if self.on_host:
            self._check_shape(found.shape, len(images))
        return found

    def outputs(self, images: np.ndarray) -> Shaped[np.ndarray, "N ..."]:
        """Computes the output, one array of any type, for images `(N, H, W, 3)` in 0..255."""
        if self.on_host:
            found = self._read(np.asarray(normalised(images)))
        else:
            try:
                found = np.asarray(_output(self.function, self.state, images))
            except (ValueError, TypeError) as error:
                raise self._failed(images, error) from error
        if not found.ndim or len(found) != len(images):
            raise InputError(
                f"{self.name} returns an array of shape {found.shape} for {len(images)} images; it "
                "has to return one array with an item for each"
            )
        return found

    def call_on_host(self, images: np.ndarray) -> Float[np.ndarray, "N classes"]:
        """Computes logits of normalised images with a function of NumPy arrays."""
        logits = self._read(images, np.float32)
        self._check_shape(logits.shape, len(images))
        return logits

    def _read(self, images: np.ndarray, dtype: DTypeLike | None = None) -> np.ndarray:
        try:
            copy = np.array(images)  # the function may write to it
            return np.asarray(self.function(self.state, copy), dtype)
        except Exception as error:
            raise self._failed(images, error) from error

    def _failed(self, images: np.ndarray, error: Exception) -> InputError:
        shape = "x".join(map(str, images.shape))
        return InputError(
            f"{self.name} fails on normalised float32 images {shape}: "
            f"{type(error).__name__}: {first_line(error)}"
        )

    def num_classes(self, crop_size: int, batch_size: int = 1) -> int:
        """Infers the number of logits without data; other outputs are an InputError."""
        shape = self.output_shape(crop_size, batch_size)
        self._check_shape(shape, batch_size)
        assert shape is not None
        return shape[-1]

    def output_shape(self, crop_size: int, batch_size: int = 1) -> tuple[int, ...] | None:
        """Infers the shape of the output without data; None: it is not an array."""
        shape = (batch_size, crop_size, crop_size, 3)
        if self.on_host:
            return self._read(np.zeros(shape, np.float32)).shape
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        try:
            output = jax.eval_shape(self.function, self.state, images)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.name} cannot process crops of {crop_size} pixels: {first_line(error)}"
            ) from error
        return getattr(output, "shape", None)

    def _check_shape(self, shape: tuple[int, ...] | None, count: int) -> None:
        if shape is None or len(shape) != 2 or shape[0] != count or shape[1] < 1:
            found = "no array" if shape is None else f"an array of shape {shape}"
            raise InputError(
                f"{self.name} returns {found} for {count} images; it has to return logits "
                f"({count}, classes)"
            )


def predictor_of(predict: Any, *, jit: bool | None = None, crop_size: int = 224) -> Predictor:
    """Returns the predictor of a model or a function.

    Args:
        predict: a model (its batch norms use their running statistics from now on) or a function
            from normalised float32 images `(N, H, W, 3)` to logits `(N, classes)`.
        jit: whether the function is one of JAX, to be compiled. None: detect it by tracing with
            crops of `crop_size` pixels.
    """
    if isinstance(predict, Predictor):
        return predict
    if not callable(predict):
        raise InputError(
            f"{type(predict).__name__} is neither a model nor a function of images; give a "
            "function from float32 images (N, H, W, 3) to logits (N, classes)"
        )
    name = getattr(predict, "name", "") or getattr(predict, "__name__", type(predict).__name__)
    if isinstance(predict, Classifier):
        check_normalisation(name, predict.config)
    if isinstance(predict, nnx.Module):
        return _of_module(predict, "__call__", name)

    def stateless(_: Any, images: Any) -> Any:
        return predict(images)

    if jit is None:
        jit = _can_be_traced(stateless, crop_size)
    return Predictor(stateless, on_host=not jit, name=name)


def trunk_of(model: Classifier) -> Predictor:
    """Returns the predictor of a model's last feature map `(N, h, w, C)`."""
    return _of_module(model, "forward_features", model.name or type(model).__name__)


def embedding_of(model: Classifier) -> Predictor:
    """Returns the predictor of what a model's last layer gets: vectors `(N, features)`."""
    model.eval()
    graphdef, state = nnx.split(model)
    return Predictor(_Embedding(graphdef), state, name=model.name or type(model).__name__)


def _of_module(model: nnx.Module, method: str, name: str) -> Predictor:
    model.eval()
    graphdef, state = nnx.split(model)
    return Predictor(_Method(graphdef, method), state, name=name)


def check_normalisation(name: str, config: ModelConfig) -> None:
    """Raises an InputError for a model whose images are not normalised as in evaluations."""
    if (config.mean, config.std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise InputError(
            f"{name} expects images normalised by the mean {config.mean} and the standard "
            f"deviation {config.std}, and evaluations normalise by ImageNet's {IMAGENET_MEAN} and "
            f"{IMAGENET_STD}; give aa_flax.evaluate a function that re-normalises them"
        )


@dataclass(frozen=True)
class _Method:
    """A model's method without its state: equal, so compiled once, for all states of a model."""

    graphdef: nnx.GraphDef
    name: str

    def __call__(self, state: nnx.State, images: Array) -> Array:
        return getattr(nnx.merge(self.graphdef, state, copy=True), self.name)(images)


@dataclass(frozen=True)
class _Embedding:
    """A model's pooled features without its state; see `_Method`."""

    graphdef: nnx.GraphDef

    def __call__(self, state: nnx.State, images: Array) -> Array:
        model = nnx.merge(self.graphdef, state, copy=True)
        return model.forward_head(model.forward_features(images), pre_logits=True)


def head_of(model: Classifier) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the compiled function from last feature maps `(N, h, w, C)` to logits."""
    graphdef, state = nnx.split(model)
    head = jax.jit(lambda state, maps: nnx.merge(graphdef, state, copy=True).forward_head(maps))
    return lambda maps: np.asarray(head(state, maps))


def _can_be_traced(function: Callable, crop_size: int) -> bool:
    images = jax.ShapeDtypeStruct((1, crop_size, crop_size, 3), jnp.float32)
    try:
        found = jax.eval_shape(function, (), images)
    except Exception:  # other frameworks raise anything when given a tracer
        return False
    return hasattr(found, "shape")


def logits_of(function: Callable, state: Any, images: Array) -> Array:
    """Computes float32 logits of images `(N, H, W, 3)` in 0..255; call it under `jax.jit`."""
    return function(state, normalise(images)).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _output(function: Callable, state: Any, images: Array) -> Any:
    return function(state, normalise(images))


_compiled = partial(jax.jit, static_argnums=0)(logits_of)
# Images in 0..255, of any leading axes, as models expect them.
normalised = jax.jit(lambda images: normalise(images).astype(jnp.float32))


def in_batches(
    function: Callable[[np.ndarray], Any], images: Iterable[np.ndarray], size: int, progress: tqdm
) -> Iterator[np.ndarray]:
    """Yields a function's output for each image, computed in batches of `size`.

    The last batch is padded with its last image, so that the function compiles for one shape; if it
    is also the first, its own size will do.
    """
    images, is_first = iter(images), True
    while batch := list(islice(images, size)):
        missing = 0 if is_first else size - len(batch)
        yield from np.asarray(function(np.stack(batch + missing * batch[-1:])))[: len(batch)]
        progress.update(len(batch))
        is_first = False
