"""What is exported of a net: its function, what images it takes, and what is told beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.data.pixels import normalise
from aa_flax.errors import InputError
from aa_flax.fuse import fuse
from aa_flax.models.classifier import Classifier

Function = Callable[[Any], jax.Array]


@dataclass(frozen=True)
class Program:
    """A net for inference, from images to logits.

    Attributes:
        model: as it was given.
        size: side of the images, in pixels; if sizes are open, of those it is compared on.
        open_size: whether height and width are left open.
        preprocessing: whether images are bytes and the output is probabilities.
        logits: the function of fused layers, which normalises bytes first; to be traced within
            `ops.definitions()`.
    """

    model: Classifier
    size: int
    open_size: bool
    preprocessing: bool
    logits: Function

    @property
    def name(self) -> str:
        return self.model.name or "this net"

    @property
    def dtype(self) -> np.dtype:
        """The images'."""
        return np.dtype(np.uint8 if self.preprocessing else np.float32)

    @property
    def output(self) -> str:
        if self.model.num_classes == 0:
            return "embedding"
        return "probabilities" if self.preprocessing else "logits"

    def finished(self, logits: Any) -> jax.Array:
        """The output that follows from the logits."""
        return jax.nn.softmax(logits) if self.output == "probabilities" else logits

    def images(self, *sizes: Any) -> jax.ShapeDtypeStruct:
        """A batch of such images, as a shape: of n images, of their height and width."""
        return jax.ShapeDtypeStruct((*sizes, self.model.image_channels), self.dtype)

    def expected(self, images: np.ndarray) -> np.ndarray:
        """What the net itself gives, as it was before all this."""
        graph, state = nnx.split(self.model)
        run = jax.jit(lambda state, x: _logits(nnx.merge(graph, state), x))
        with jax.default_matmul_precision("highest"):
            return np.asarray(self.finished(run(state, images)), np.float32)

    def random_images(self, *sizes: int) -> np.ndarray:
        """A batch of images to compare on."""
        rng, spec = np.random.default_rng(0), self.images(*sizes)
        if self.preprocessing:
            return rng.integers(0, 256, spec.shape, np.uint8)
        return rng.standard_normal(spec.shape, np.float32)

    def metadata(self) -> dict[str, Any]:
        """Facts about the net, its weights and what it expects, as JSON knows them."""
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
            "input": {
                "shape": ["batch", *sides, self.model.image_channels],
                "type": self.dtype.name,
            },
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
    """A net as it is exported.

    Args:
        size: default: that of the net's config.

    Raises:
        InputError: no net, one in training mode or of another type, or images too small for it.
    """
    if not isinstance(model, Classifier):
        raise InputError(
            f"export takes a net of aa_flax.create_model, got a {type(model).__name__}; of a "
            "backbone the whole net, created without features_only"
        )
    layers = [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.Conv | nnx.Linear)]
    kinds = {jnp.dtype(layer.dtype).name for layer in layers if layer.dtype is not None}
    if others := sorted(kinds - {"float32"}):
        raise InputError(
            f"export takes nets that compute in float32, got one that computes in {others[0]}; "
            "create it with dtype=jnp.float32, the weights are the same"
        )
    size = model.config.input_size if size is None else size
    fused = fuse(model, image_size=size)
    fused.remat = False  # which is of the backward pass alone
    graph, state = nnx.split(fused)

    def logits(images: Any) -> jax.Array:
        # Variables of this trace: a block in `nnx.remat` takes no others.
        return _logits(nnx.merge(graph, state, copy=True), images)

    return Program(model, size, open_size, preprocessing, logits)


def _logits(net: Classifier, images: Any) -> jax.Array:
    """Of bytes, which are normalised, or of floats that are so already."""
    if images.dtype == jnp.uint8:
        images = normalise(images, net.config.mean, net.config.std)
    return net(images)
