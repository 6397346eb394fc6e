"""Nets made for weights that are there already: built as shapes alone, then filled."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.typing import DTypeLike

from aa_flax.errors import InputError
from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from aa_flax.nn.initializers import abstract, initial_values
from aa_flax.weights.checks import check_names_and_shapes
from aa_flax.weights.content import Content, count_in, naming
from aa_flax.weights.fit import (
    check_same_net,
    fit,
    last_layer,
    named_weights,
    num_classes_of,
    set_weights,
)

# Builds a net for a number of classes, drawing what is random from the keys.
Build = Callable[[int, nnx.Rngs], Classifier]


class Held(NamedTuple):
    """Weights by this package's names, and the net they are of.

    Attributes:
        label: what holds them, for messages.
        options: the net's; None: it is not said.
        num_classes: outputs of its last layer, 0 of a net without one; None: the net has one, these
            weights have not.
        head: names of that net's last layer.
    """

    label: str
    model: str
    options: Mapping[str, Any] | None
    num_classes: int | None
    arrays: Mapping[str, Any]
    head: Sequence[str]


def build_net(
    name: str,
    options: Mapping[str, Any],
    dtype: DTypeLike | None,
    num_classes: int,
    rngs: nnx.Rngs,
) -> Classifier:
    """A net with random weights; with all but the last two bound, a `Build`."""
    return registry.build(name, num_classes=num_classes, dtype=dtype, rngs=rngs, **options)


def abstract_net(name: str, num_classes: int, **options: Any) -> Classifier:
    """A net of shapes alone, for weights to be put in."""
    return abstract(
        lambda rngs: registry.build(name, num_classes=num_classes, rngs=rngs, **options)
    )


def hold(content: Content, name: str, options: Mapping[str, Any]) -> Held:
    """The weights in a file as those of a net; its last layer is whatever it is.

    Args:
        name: the net's name, where the file does not say it.
        options: the net's; those the file says are added.

    Raises:
        InputError: they do not fit the net.
    """
    name = content.metadata.get("model", name) if content.ours else name
    options = {**(content.options or {}), **options}
    said = count_in(content.metadata, "num_classes") if content.ours else None
    try:
        with naming(content.label):
            net = abstract_net(name, 1000 if said is None else said, **options)
    except TypeError as error:
        raise InputError(f"{content.label}: {name} cannot be built with {options}") from error
    arrays = fit(net, content, any_head=True)
    num_classes, head = num_classes_of(net), last_layer(net)
    if head:
        num_classes = arrays[head[0]].shape[-1] if head[0] in arrays else None
    return Held(content.label, name, content.options, num_classes, arrays, head)


def filled(
    held: Held, build: Build, num_classes: int | None, *, trunk_only: bool = False
) -> Classifier:
    """A net with these weights; what is no weight, or not held, is a shape alone.

    A last layer of another number of classes is not held; with `num_classes=0` the net has none.

    Args:
        trunk_only: the classifier is of no use: no word about layers of it that are not held.

    Raises:
        InputError: weights of another net, or a number of classes that is needed and not given.
    """
    num_classes = classes = classes_for(held, num_classes)
    model = abstract(lambda rngs: build(classes, rngs))
    check_same_net(held.label, held.model, held.options, model)
    given, renewed = dict(held.arrays), []
    if num_classes != held.num_classes:
        given = {name: array for name, array in given.items() if name not in held.head}
        renewed = last_layer(model)
    variables = named_weights(model)
    more = [n for n in variables if n not in given and n not in renewed]
    if held.num_classes is None and more:  # of a classifier of several layers
        if not trunk_only:
            advice = "" if num_classes else "; features_only=True gives the maps of the trunk alone"
            random = f"does not hold {', '.join(more)}: random"
            warnings.warn(f"{held.label} {random}{advice}", stacklevel=4)
        renewed = [*renewed, *more]
    expected = {n: tuple(v.shape) for n, v in variables.items() if n not in renewed}
    check_names_and_shapes(expected, {name: array.shape for name, array in given.items()})
    set_weights(model, given)
    return model


def classes_for(held: Held, num_classes: int | None) -> int:
    """The number of classes asked for, or that of the weights."""
    if num_classes is not None:
        return num_classes
    if held.num_classes is not None:
        return held.num_classes
    raise InputError(
        f"{held.label} holds no classifier, a backbone alone; give num_classes: the number of "
        "classes of a new one, or 0 for the net without it (or features_only=True for its maps)"
    )


def complete(
    held: Held,
    build: Build,
    num_classes: int | None,
    rngs: nnx.Rngs,
    *,
    trunk_only: bool = False,
) -> Classifier:
    """The net with these weights, in evaluation mode; all that they do not hold is drawn anew.

    Args:
        trunk_only: the classifier is of no use; parameters of it that are not held stay shapes.
    """

    def build_for_evaluation(num_classes: int, rngs: nnx.Rngs) -> Classifier:
        model = build(num_classes, rngs)
        model.eval()
        return model

    model = filled(held, build_for_evaluation, num_classes, trunk_only=trunk_only)
    num_classes = classes_for(held, num_classes)
    useless = nnx.Param if trunk_only else ()
    _initialise_the_rest(model, lambda rngs: build_for_evaluation(num_classes, rngs), rngs, useless)
    return model


def _initialise_the_rest(
    model: Classifier,
    build: Callable[[nnx.Rngs], Classifier],
    rngs: nnx.Rngs,
    useless: type | tuple[()],
) -> None:
    """Gives each variable that is a shape alone the value a net without weights has there."""
    missing = {
        path: variable
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if not isinstance(variable, useless)
        and isinstance(variable.get_value(), jax.ShapeDtypeStruct)
    }
    for path, value in initial_values(build, rngs, missing).items():
        missing[path].set_value(value)
