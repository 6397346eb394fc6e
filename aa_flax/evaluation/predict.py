"""Any function from images to logits, in the one shape in which the evaluator calls it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from aa_flax.data.pixels import normalise
from aa_flax.errors import InputError, first_line
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig


@dataclass(frozen=True)
class Predictor:
    """A function from images to logits, and what it needs.

    Attributes:
        function: `function(state, images)` gives logits `(N, classes)` of normalised float32
            images `(N, H, W, 3)`. Compiled once for all predictors of an equal function.
        state: its arrays.
        on_host: it is no JAX function: it is called with NumPy arrays, a batch of images a call
            on one host, and its output read by NumPy.
        name: what to call it in messages.
    """

    function: Callable[[Any, Any], Any]
    state: Any = field(default=(), compare=False)
    on_host: bool = False
    name: str = "predict"

    def logits(self, images: Array | np.ndarray) -> Float[Array, "N classes"]:
        """float32 logits of images `(N, H, W, 3)` with values in 0..255."""
        if self.on_host:
            return jnp.asarray(self.call_on_host(np.asarray(_normalised(images))))
        return _compiled(self.function, self.state, images)

    def maps(self, images: Array | np.ndarray) -> Float[Array, "N ..."]:
        """float32 output, of any shape, for images `(N, H, W, 3)` with values in 0..255."""
        if self.on_host:
            return jnp.asarray(self._read(np.asarray(_normalised(images)), np.float32))
        return _compiled(self.function, self.state, images)

    def outputs(self, images: np.ndarray) -> Shaped[np.ndarray, "N ..."]:
        """Whatever one array it gives of images `(N, H, W, 3)` with values in 0..255.

        Raises:
            InputError: it fails on them, or gives no array of N parts.
        """
        if self.on_host:
            found = self._read(np.asarray(_normalised(images)))
        else:
            found = self._array_of_jax(images)
        if not found.ndim or len(found) != len(images):
            raise InputError(
                f"{self.name} gives an array of shape {found.shape} for {len(images)} images; it "
                "has to give one array with as many parts"
            )
        return found

    def _array_of_jax(self, images: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(_output(self.function, self.state, images))
        except (ValueError, TypeError) as error:
            raise self._failed(images, error) from error

    def call_on_host(self, images: np.ndarray) -> Float[np.ndarray, "N classes"]:
        """The logits that a function of NumPy arrays gives for normalised images."""
        logits = self._read(images, np.float32)
        self._check_shape(logits.shape, len(images))
        return logits

    def _read(self, images: np.ndarray, dtype: DTypeLike | None = None) -> np.ndarray:
        try:
            mine = np.array(images)  # which the function may write to
            return np.asarray(self.function(self.state, mine), dtype)
        except Exception as error:
            raise self._failed(images, error) from error

    def _failed(self, images: np.ndarray, error: Exception) -> InputError:
        shape = "x".join(map(str, images.shape))
        return InputError(
            f"{self.name} fails on normalised float32 images {shape}: "
            f"{type(error).__name__}: {first_line(error)}"
        )

    def num_classes(self, crop_size: int, batch_size: int = 1) -> int:
        """How many logits it gives, found without data.

        Raises:
            InputError: it cannot see images of that size, or gives something else than logits.
        """
        shape = self.output_shape(crop_size, batch_size)
        self._check_shape(shape, batch_size)
        assert shape is not None
        return shape[-1]

    def output_shape(self, crop_size: int, batch_size: int = 1) -> tuple[int, ...] | None:
        """The shape of what it gives for so many images, found without data; None: no array.

        Raises:
            InputError: it cannot see images of that size.
        """
        shape = (batch_size, crop_size, crop_size, 3)
        if self.on_host:
            return self._read(np.zeros(shape, np.float32)).shape
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        try:
            output = jax.eval_shape(self.function, self.state, images)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.name} cannot see crops of {crop_size} pixels: {first_line(error)}"
            ) from error
        return getattr(output, "shape", None)

    def _check_shape(self, shape: tuple[int, ...] | None, count: int) -> None:
        if shape is None or len(shape) != 2 or shape[0] != count or shape[1] < 1:
            raise InputError(
                f"{self.name} gives {'no array' if shape is None else f'an array of shape {shape}'}"
                f" for {count} images; it has to give logits ({count}, classes)"
            )


def predictor_of(predict: Any, *, jit: bool | None = None, crop_size: int = 224) -> Predictor:
    """A net or a function, ready to be evaluated.

    Args:
        predict: a net (its batch norms use their running statistics from here on) or a function
            from normalised float32 images `(N, H, W, 3)` to logits `(N, classes)`.
        jit: whether the function is one of JAX's, to be compiled. None: it is, if JAX can trace it
            for crops of `crop_size` pixels.

    Raises:
        InputError: neither, or a net of images that are normalised in another way.
    """
    if isinstance(predict, Predictor):
        return predict
    if not callable(predict):
        raise InputError(
            f"{type(predict).__name__} is no net and no function of images; give a function from "
            "float32 images (N, H, W, 3) to logits (N, classes)"
        )
    name = getattr(predict, "name", "") or getattr(predict, "__name__", type(predict).__name__)
    if isinstance(predict, Classifier):
        check_normalisation(name, predict.config)
    if isinstance(predict, nnx.Module):
        predict.eval()
        graphdef, state = nnx.split(predict)
        return Predictor(_Net(graphdef), state, name=name)
    function = _Stateless(predict)
    if jit is None:
        jit = _can_be_traced(function, crop_size)
    return Predictor(function, on_host=not jit, name=name)


def check_normalisation(name: str, config: ModelConfig) -> None:
    """Raises an InputError for a net whose images are not normalised as evaluations do it."""
    if (config.mean, config.std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise InputError(
            f"{name} expects images normalised by the mean {config.mean} and the standard "
            f"deviation {config.std}, and evaluations normalise by ImageNet's {IMAGENET_MEAN} and "
            f"{IMAGENET_STD}; give aa_flax.evaluate a function that normalises them anew"
        )


@dataclass(frozen=True)
class _Net:
    """A net without its state: equal, and so compiled once, for all states of one net."""

    graphdef: nnx.GraphDef

    def __call__(self, state: nnx.State, images: Array) -> Array:
        model: Any = nnx.merge(self.graphdef, state, copy=True)
        return model(images)


@dataclass(frozen=True)
class _Trunk:
    """A net's last feature map, without its state."""

    graphdef: nnx.GraphDef

    def __call__(self, state: nnx.State, images: Array) -> Array:
        model: Any = nnx.merge(self.graphdef, state, copy=True)
        return model.forward_features(images)


def trunk_of(model: Classifier) -> Predictor:
    """The last feature map of a net `(N, h, w, C)`, by `Predictor.outputs`."""
    model.eval()
    graphdef, state = nnx.split(model)
    return Predictor(_Trunk(graphdef), state, name=model.name or type(model).__name__)


def head_of(model: Classifier) -> Callable[[np.ndarray], np.ndarray]:
    """The logits `(N, classes)` of last feature maps `(N, h, w, C)`, compiled."""
    graphdef, state = nnx.split(model)
    head = jax.jit(lambda state, maps: nnx.merge(graphdef, state, copy=True).forward_head(maps))
    return lambda maps: np.asarray(head(state, maps))


class _Stateless:
    """A function that takes images alone; equal only to itself."""

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, state: Any, images: Any) -> Any:
        return self._function(images)


def _can_be_traced(function: _Stateless, crop_size: int) -> bool:
    images = jax.ShapeDtypeStruct((1, crop_size, crop_size, 3), jnp.float32)
    try:
        found = jax.eval_shape(function, (), images)
    except Exception:  # whatever another framework says to a tracer
        return False
    return hasattr(found, "shape")


def logits_of(function: Callable, state: Any, images: Array) -> Array:
    """float32 logits `(N, classes)` of images `(N, H, W, 3)` in 0..255, for use under `jax.jit`."""
    return function(state, normalise(images)).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _output(function: Callable, state: Any, images: Array) -> Any:
    return function(state, normalise(images))


_compiled = partial(jax.jit, static_argnums=0)(logits_of)
_normalised = jax.jit(lambda images: normalise(images).astype(jnp.float32))


def normalised(images: Array) -> Array:
    """Images with values in 0..255 as nets see them, compiled; any leading axes."""
    return _normalised(images)
