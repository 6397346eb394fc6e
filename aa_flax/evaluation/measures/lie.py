"""Local equivariance error, end to end and by layer."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from aa_flax.data.pixels import normalise
from aa_flax.errors import InputError, integer
from aa_flax.evaluation.equivariance import block_strides
from aa_flax.evaluation.lie import FIELDS, Layer, Transformation, derivatives_by_layer
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.measures.equivariance import Subset
from aa_flax.evaluation.observe import Observations
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import progress_bar, put_batch, replicate, replicated

_BATCH = 8  # images on a device: late layers have a tangent for each layer before them

# The directions of a transformation, and the unit in which its derivative is printed.
_TRANSFORMATIONS: dict[str, tuple[tuple[Transformation, ...], str, float]] = {
    "translation": (("translation_down", "translation_right"), "pixel", 1),
    "rotation": (("rotation",), "degree", math.pi / 180),
    "scale": (("scale",), "percent", 1 / 100),
}


class LocalEquivarianceError(Measure):
    """Mean square of the Lie derivative of the probabilities (Gruver et al. 2023).

    For each transformation: `error`, the mean of |Lf|^2 / classes, of translations the mean of both
    axes, per pixel, radian and factor of e; `change`, the root of the mean |Lf|^2 in percentage
    points per pixel, degree and percent; and of a model of this package `layers`, the percentage
    of |Lf|^2 that is each layer's: the mean of (its share . Lf), so that they sum to 100, and a
    layer that compensates for others has a negative one.
    """

    options = (
        Option("lee", "local equivariance error of translation, rotation and scale, by layer"),
        Option("lee_images", "--lee: number of images, spread evenly over the data", 64, int),
    )
    columns = tuple(
        Column(
            f"LEE, change per {unit}",
            (name, "change"),
            unit="",  # small numbers: significant digits
            note="change of the probabilities (root mean square of its length over the images) per "
            f"{unit} of {name}, in percentage points: the root of the local equivariance error "
            "times the number of classes",
        )
        for name, (_, unit, _) in _TRANSFORMATIONS.items()
    )

    def settings(self, subject: Subject) -> Result:
        count = integer("--lee_images", subject.options["lee_images"], least=1)
        return {"num_images": min(count, len(subject.source))}

    def check(self, subject: Subject) -> None:
        self.settings(subject)
        if subject.predictor.on_host:
            raise InputError(
                f"the measure lee differentiates {subject.name}, which is not a function of JAX; "
                "leave it out, or convert a model of PyTorch by aa_flax.from_torch"
            )

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        layers, names, strides = _layers(subject)
        some = Subset(subject.source, self.settings(subject)["num_images"])
        settings = replace(subject.settings, batch_size=_BATCH * subject.mesh.size)
        state = replicate(subject.predictor.state, subject.mesh)
        products = np.zeros((len(FIELDS), len(names) or 1))
        count = 0
        with progress_bar(len(some), "lee") as bar:
            for batch in settings.batches(some, settings.crop_size):
                on_device = put_batch(batch, subject.mesh)
                views = (on_device["image"], on_device["mask"])
                for i, field in enumerate(FIELDS.values()):
                    found = _products(layers, strides, subject.mesh, state, field, *views)
                    products[i] += np.asarray(found)
                images = int(_count(views[1], subject.mesh))
                count += images
                bar.update(images)
        classes = subject.predictor.num_classes(settings.crop_size)
        found = dict(zip(FIELDS, products / count, strict=True))
        return {name: _numbers(name, found, names, classes) for name in _TRANSFORMATIONS}

    def line(self, result: Result) -> str:
        parts = [
            f"{result[name]['change']:.3g} points per {unit} of {name} (LEE "
            f"{result[name]['error']:.2e})"
            for name, (_, unit, _) in _TRANSFORMATIONS.items()
        ]
        return f"{'lee':12} probabilities change by {', '.join(parts)}"


def _layers(
    subject: Subject,
) -> tuple[Callable[[Any], list[Layer]], tuple[str, ...], tuple[float, ...] | None]:
    """Returns the layers to the probabilities of a state, their names, and their strides.

    A function, or a model with another `__call__` than its blocks and its head, is one layer.
    """
    model, function = subject.model, subject.predictor.function
    family = type(model)
    if (
        model is None
        or family.__call__ is not Classifier.__call__
        or family.named_blocks is Classifier.named_blocks
    ):
        return lambda state: [_with_softmax(partial(function, state))], (), None
    graphdef = nnx.split(model)[0]

    def layers(state: Any) -> list[Layer]:
        merged: Any = nnx.merge(graphdef, state, copy=True)
        blocks = [block for _, block in merged.named_blocks()]
        return [*blocks, _with_softmax(merged.forward_head)]

    names = (*(name for name, _ in model.named_blocks()), "head")
    return layers, names, (*block_strides(model), 1)


def _with_softmax(function: Layer) -> Layer:
    return lambda x: jax.nn.softmax(function(x).astype(jnp.float32))


@partial(jax.jit, static_argnames=("layers", "strides", "mesh"))
def _products(
    layers, strides, mesh: Mesh, state, field, images: Array, mask: Bool[Array, " N"]
) -> Float[Array, " layers"]:
    """Sums (share . Lf) of each layer over the images of a batch."""
    x = normalise(images)
    shares = jnp.stack(derivatives_by_layer(layers(state), x, field, strides=strides))
    products = jnp.einsum("knc,nc->kn", shares, shares.sum(0), precision=lax.Precision.HIGHEST)
    return lax.with_sharding_constraint(products.sum(1, where=mask), replicated(mesh))


@partial(jax.jit, static_argnames="mesh")
def _count(mask: Bool[Array, " N"], mesh: Mesh) -> Array:
    return lax.with_sharding_constraint(mask.sum(), replicated(mesh))


def _numbers(
    name: str,
    products: dict[Transformation, np.ndarray],
    names: tuple[str, ...],
    classes: int,
) -> Result:
    """Returns the numbers of a transformation from the mean of (share . Lf) of each layer."""
    directions, _, unit = _TRANSFORMATIONS[name]
    by_layer = np.mean([products[d] for d in directions], 0)
    square = max(float(by_layer.sum()), 0.0)  # a rounding error below, if shares cancel
    found: Result = {"error": square / classes, "change": 100 * unit * math.sqrt(square)}
    if names:
        percent = 100 * by_layer / (square or 1)  # no change at all: no layer has a share of it
        found["layers"] = dict(zip(names, percent.tolist(), strict=True))
    return found
