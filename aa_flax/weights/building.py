"""Builds models for given weights: abstract ones, of shapes alone, which the weights fill."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from aa_flax.errors import InputError
from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from aa_flax.nn.initializers import abstract, initial_values
from aa_flax.weights.fit import (
    check_names_and_shapes,
    check_same_model,
    fit,
    last_layer,
    named_weights,
    set_weights,
)
from aa_flax.weights.read import Weights, prefixed

# Builds a model from the keywords `num_classes` and `rngs`.
Build = Callable[..., Classifier]


def abstract_model(name: str, num_classes: int, **options: Any) -> Classifier:
    """Builds a model of shapes alone, for weights to fill."""
    return abstract(
        lambda rngs: registry.build(name, num_classes=num_classes, rngs=rngs, **options)
    )


def fitted(weights: Weights, name: str, options: Mapping[str, Any]) -> Weights:
    """Fits weights to a model, whatever their last layer is, and renames them as that model does.

    Args:
        name: the model's name, where the weights do not say it.
        options: the model's, added to those of the weights.
    """
    name = weights.model or name
    options = {**(weights.options or {}), **options}
    classes = 1000 if weights.num_classes is None else weights.num_classes
    try:
        with prefixed(weights.label):
            model = abstract_model(name, classes, **options)
    except TypeError as error:
        raise InputError(f"{weights.label}: {name} cannot be built with {options}") from error
    arrays = fit(model, weights, any_head=True)
    head, num_classes = last_layer(model), model.num_classes or 0
    if head:
        num_classes = arrays[head[0]].shape[-1] if head[0] in arrays else None
    return Weights(weights.label, arrays, False, model.name, weights.options, num_classes, head)


def filled(
    weights: Weights, build: Build, num_classes: int, *, trunk_only: bool = False
) -> Classifier:
    """Builds a model with these weights; variables that they lack stay abstract.

    A last layer for another number of classes is not used; `num_classes=0` leaves it out. With
    `trunk_only` no warning says that layers of the classifier are absent.
    """
    model = abstract(lambda rngs: build(num_classes=num_classes, rngs=rngs))
    check_same_model(weights, model)
    given, random = dict(weights.arrays), []
    if num_classes != weights.num_classes:
        given = {name: array for name, array in given.items() if name not in weights.head}
        random = last_layer(model)
    variables = named_weights(model)
    absent = [n for n in variables if n not in given and n not in random]
    if weights.num_classes is None and absent:  # other layers of the classifier
        if not trunk_only:
            advice = "" if num_classes else "; features_only=True gives the maps of the trunk alone"
            warnings.warn(
                f"{weights.label} does not contain {', '.join(absent)}: random{advice}",
                stacklevel=4,
            )
        random = [*random, *absent]
    expected = {n: tuple(v.shape) for n, v in variables.items() if n not in random}
    check_names_and_shapes(expected, {name: array.shape for name, array in given.items()})
    set_weights(model, given)
    return model


def complete(
    weights: Weights,
    build: Build,
    num_classes: int | None,
    rngs: nnx.Rngs,
    *,
    trunk_only: bool = False,
) -> Classifier:
    """Builds a model with these weights, in evaluation mode; what they lack is initialized.

    Args:
        num_classes: default: that of the weights, which must have a last layer then.
        trunk_only: the classifier is not needed: parameters of it that are absent stay abstract.
    """
    classes = weights.num_classes if num_classes is None else num_classes
    if classes is None:
        raise InputError(
            f"{weights.label} contains no classifier, a backbone alone; give num_classes: the "
            "number of classes of a new one, or 0 for the model without it (or features_only=True "
            "for its maps)"
        )
    model = filled(weights, build, classes, trunk_only=trunk_only)
    model.eval()
    missing = {
        path: variable
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if isinstance(variable.get_value(), jax.ShapeDtypeStruct)
        and not (trunk_only and isinstance(variable, nnx.Param))
    }
    values = initial_values(lambda rngs: build(num_classes=classes, rngs=rngs), rngs, missing)
    for path, value in values.items():
        missing[path].set_value(value)
    return model
