"""A model for export: its function, the images it takes, and its metadata."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.data.pixels import normalise
from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.fuse import fuse


@dataclass(frozen=True)
class Program:
    """A model for inference, from images to logits."""

    model: Classifier  # the user's
    size: int  # side of the images, in pixels; if sizes are open, of those it is compared on
    open_size: bool  # height and width are left open
    preprocessing: bool  # images are uint8, and the output is probabilities
    # Of fused layers, normalizes uint8 images first; to be traced within `ops.definitions()`.
    logits: Callable[[Any], jax.Array]

    @property
    def name(self) -> str:
        return self.model.name or "this model"

    @property
    def dtype(self) -> np.dtype:
        """The type of the images."""
        return np.dtype(np.uint8 if self.preprocessing else np.float32)

    @property
    def output(self) -> str:
        if self.model.num_classes == 0:
            return "embedding"
        return "probabilities" if self.preprocessing else "logits"

    def finished(self, logits: Any) -> jax.Array:
        """Returns the output that follows from the logits."""
        return jax.nn.softmax(logits) if self.output == "probabilities" else logits

    def images(self, *sizes: Any) -> jax.ShapeDtypeStruct:
        """Returns the shape of a batch of that many images, of that height and width."""
        return jax.ShapeDtypeStruct((*sizes, self.model.image_channels), self.dtype)

    def expected(self, images: np.ndarray) -> np.ndarray:
        """Returns the output of the user's model, to compare with."""
        graph, state = nnx.split(self.model)
        run = jax.jit(lambda state, x: _logits(nnx.merge(graph, state), x))
        with jax.default_matmul_precision("highest"):
            return np.asarray(self.finished(run(state, images)), np.float32)

    def random_images(self, *sizes: int) -> np.ndarray:
        """Returns a batch of images to compare on."""
        rng, spec = np.random.default_rng(0), self.images(*sizes)
        if self.preprocessing:
            return rng.integers(0, 256, spec.shape, np.uint8)
        return rng.standard_normal(spec.shape, np.float32)

    def metadata(self) -> dict[str, Any]:
        """Returns facts about the model, its weights and its images, to be written as JSON."""
        config, names = self.model.config, self.model.config.class_names
        sides = ["height", "width"] if self.open_size else [self.size] * 2
        return {
            "producer": "aa_flax",
            "model": self.model.name,
            "options": self.model.options,
            "num_classes": self.model.num_classes,
            "class_names": list(names) if len(names) == self.model.num_classes else [],
            "source": config.weights or "unknown: weights that no file was named for",
            "sha256": config.sha256,
            "licence": config.licence or "unknown",
            "input": {"shape": list(self.images("batch", *sides).shape), "type": self.dtype.name},
            "output": self.output,
            "preprocessing": {
                "resize_size": config.resize_size,
                "crop_size": self.size,
                "interpolation": config.interpolation,
                "mean": list(config.mean),
                "std": list(config.std),
                "normalised_inside": self.preprocessing,
            },
        }


def program_of(model: Any, size: int | None, *, open_size: bool, preprocessing: bool) -> Program:
    """Returns a model as it is exported, by default with the size of its config."""
    if not isinstance(model, Classifier):
        raise InputError(
            f"export takes a model of aa_flax.create_model, got a {type(model).__name__}; of a "
            "backbone the whole model, created without features_only; a function needs "
            "example_inputs"
        )
    layers = [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.Conv | nnx.Linear)]
    kinds = {jnp.dtype(layer.dtype).name for layer in layers if layer.dtype is not None}
    if others := sorted(kinds - {"float32"}):
        raise InputError(
            f"export takes models that compute in float32, got one that computes in {others[0]}; "
            "create it with dtype=jnp.float32, the weights are the same"
        )
    size = model.config.input_size if size is None else size
    fused = fuse(model, image_size=size)
    fused.remat = False  # which concerns the backward pass only
    graph, state = nnx.split(fused)

    def logits(images: Any) -> jax.Array:
        # Copied variables belong to this trace: a block in `nnx.remat` accepts no others.
        return _logits(nnx.merge(graph, state, copy=True), images)

    return Program(model, size, open_size, preprocessing, logits)


def _logits(model: Classifier, images: Any) -> jax.Array:
    """Returns logits of uint8 images, which are normalized, or of normalized floats."""
    if images.dtype == jnp.uint8:
        images = normalise(images, model.config.mean, model.config.std)
    return model(images)


def bound_to_one_size(name: str) -> InputError:
    """Returns the error for a model whose program depends on the size of its images."""
    return InputError(
        f"{name} cannot be exported for images of every size: what it computes depends on their "
        "height and width in numbers (AlexNet and VGG pool into a fixed number of bins, some pools "
        "look up an axis as a whole); leave dynamic size out, and export a file for each size"
    )
