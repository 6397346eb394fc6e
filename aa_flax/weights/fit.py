"""Puts weights in the places of a net: every name accounted for, or one error and nothing done."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import parse_name
from aa_flax.weights.checks import Shape, check_names_and_shapes
from aa_flax.weights.content import Content
from aa_flax.weights.state_dicts import check_floats, match_names
from aa_flax.weights.torch_format import check_filters, torch_counters, torch_filters, torch_slots

_WEIGHTS = (nnx.Param, nnx.BatchStat)
# The numbers are those of docs/true_weights.md.
_STATISTICS = (
    "; where it has batch norms their statistics fit no more then: a MobileNetV2 copied into _lpf4 "
    "fell from 77.5 to 12.5 % top-1, and aa_flax.recalibrate_batch_norm(model, images) brought "
    "back 75.0 %"
)


def named_weights(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The variables that make up a model's weights, by path, e.g. `layer1.0.conv1.kernel`."""
    return {
        ".".join(map(str, path)): variable
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(*_WEIGHTS)))
    }


def set_weights(model: nnx.Module, arrays: Mapping[str, Any]) -> None:
    """Sets the variables of these names; arrays are copied, and take the variables' types."""
    variables = named_weights(model)
    for name, array in arrays.items():
        variable = variables[name]
        # A copy, and NumPy's: JAX may otherwise share the memory of a tensor that torch goes on
        # changing, or compile a program for each shape.
        variable.set_value(jax.device_put(np.array(array, variable.dtype)))


def last_layer(model: nnx.Module) -> list[str]:
    """Names of the variables of the linear layer that gives the logits; none where there is none.

    It is the last linear one of the layers at the top of the net, `fc3` of `fc1` to `fc3`.
    """
    if getattr(model, "num_classes", None) == 0:
        return []
    linear = [name for name, layer in vars(model).items() if isinstance(layer, nnx.Linear)]
    if not linear:
        return []
    return [name for name in named_weights(model) if name.startswith(f"{linear[-1]}.")]


def num_classes_of(model: nnx.Module) -> int:
    """Outputs of a net's last layer; 0: it has none."""
    said = getattr(model, "num_classes", None)
    if said is not None:
        return said
    shapes = [named_weights(model)[name].shape for name in last_layer(model)]
    return shapes[0][-1] if shapes else 0


def options_of(model: nnx.Module) -> dict[str, Any]:
    """What sets a net apart from the default one of its name, as a file stores it."""
    return json.loads(json.dumps(dict(getattr(model, "options", {}))))


def check_same_net(
    label: str, name: str | None, options: Mapping[str, Any] | None, model: nnx.Module
) -> None:
    """Raises an InputError if weights that say which net they are of are of another than `model`.

    Args:
        label: what holds the weights.
        name: the net they are of. options: its options. None: it is not said.
    """
    own = getattr(model, "name", "")
    if name and own and name != own:
        raise InputError(
            f"{label} holds weights of {name}, not of {own}; create that model (to start {own} "
            f"from them: nnx.update(model, nnx.state(other)){_STATISTICS})"
        )
    if options is not None and own:
        check_named(label, options)
    if options is not None and own and not _same_function(options, options_of(model)):
        raise InputError(
            f"{label} holds weights of {own} with {_listed(options)}, this net has "
            f"{_listed(options_of(model))}; create it with the former (to start it from them all "
            "the same: nnx.update(model, nnx.state(other)))"
        )


def check_named(label: str, options: Mapping[str, Any]) -> None:
    """Raises an InputError if an option is a function whose name others have, too."""
    for option, value in options.items():
        if _NAMELESS.search(json.dumps(value)):
            raise InputError(
                f"{label}: {option}={value!r} is a function without a name of its own, so nets of "
                "several such cannot be told apart; register a pool (aa_flax.register_pool) and "
                "give its name, or define the function at the top of a module"
            )


# A lambda, what is defined within a function, and an object without a name.
_NAMELESS = re.compile(r"<lambda>|<locals>| at 0x[0-9a-f]+")
# Options that change how weights are applied, not what they are: dilation in place of a stride.
# Whoever asks for them may have any weights; what was trained with them is not taken without.
_MAY_BE_ASKED_FOR = {"output_stride"}


def _same_function(given: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    asked = {name: value for name, value in own.items() if name in _MAY_BE_ASKED_FOR}
    return {**given, **asked} == dict(own)


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in sorted(options.items())) or "the default options"


def fit(model: Classifier, content: Content, *, any_head: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a file or mapping by this package's names, once all of them fit the model.

    Args:
        model: the net, of shapes alone or not; it stays as it is.
        any_head: the last layer may be absent, or of another number of classes; so may all of a
            classifier that torch keeps apart from the trunk (VGG's and AlexNet's three layers).

    Raises:
        InputError: one that lists all names and shapes that do not fit, fixed filters included.
    """
    fitted = _fit_ours if content.ours else _fit_torch
    return fitted(model, content, any_head)


def _fit_ours(model: Classifier, content: Content, any_head: bool) -> dict[str, np.ndarray]:
    check_same_net(content.label, content.metadata.get("model"), content.options, model)
    expected = {name: tuple(v.shape) for name, v in named_weights(model).items()}
    given = {name: array.shape for name, array in content.arrays.items()}
    if any_head:
        head = last_layer(model)
        expected = _with_any_head(expected, given, [head], class_axis=-1)
    check_names_and_shapes(expected, given, _about_a_trunk(expected, given, _linear(model)))
    check_floats(content.arrays, content.label)
    return dict(content.arrays)


def _fit_torch(model: Classifier, content: Content, any_head: bool) -> dict[str, np.ndarray]:
    slots, filters, counters = torch_slots(model), torch_filters(model), torch_counters(model)
    arrays = match_names(content.arrays, [*slots, *filters, *counters], content.label)
    arrays = {name: array for name, array in arrays.items() if name not in counters}
    given = {name: array.shape for name, array in arrays.items()}
    trained: dict[str, Shape] = {name: slot.torch_shape for name, slot in slots.items()}
    if any_head:
        head, classifier = _torch_head(model, slots)
        trained = _with_any_head(trained, given, [classifier, head], class_axis=0)
    expected = trained | {name: taps.shape for name, taps in filters.items()}
    _check_filter_sizes(model, trained, filters, given)
    hint = _about_filters(trained, filters, given)
    linear = _torch_names(slots, [named_weights(model)[name] for name in _linear(model)])
    hint = hint or _about_a_trunk(expected, given, linear)
    check_names_and_shapes(expected, given, hint)
    check_floats(arrays, content.label)
    check_filters(filters, arrays)
    names = {id(variable): name for name, variable in named_weights(model).items()}
    taken = {name: slots[name] for name in trained}
    return {names[id(slot.variable)]: slot.from_torch(arrays[n]) for n, slot in taken.items()}


def _torch_head(model: Classifier, slots: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """torch's names of the last layer, and of all that stands in one Sequential with it."""
    head = _torch_names(slots, [named_weights(model)[name] for name in last_layer(model)])
    groups = {name.partition(".")[0] for name in head}
    return head, [name for name in slots if name.partition(".")[0] in groups]


def _torch_names(slots: Mapping[str, Any], variables: Collection[nnx.Variable]) -> list[str]:
    return [name for name, slot in slots.items() if any(slot.variable is v for v in variables)]


def _linear(model: nnx.Module) -> list[str]:
    """Names of the variables of all linear layers at the top of the net: its classifier."""
    linear = [name for name, layer in vars(model).items() if isinstance(layer, nnx.Linear)]
    return [name for name in named_weights(model) if name.partition(".")[0] in linear]


def _about_a_trunk(
    expected: Mapping[str, Shape], given: Mapping[str, Shape], linear: Collection[str]
) -> str:
    """What to do with weights that lack layers of the classifier and nothing else."""
    missing = expected.keys() - given.keys()
    if not missing or not missing <= set(linear) or given.keys() - expected.keys():
        return ""
    return (
        "these are the weights of a trunk: create_model(NAME, pretrained=FILE, num_classes=N) "
        "gives it a new classifier, features_only=True leaves the classifier out"
    )


def _with_any_head(
    expected: Mapping[str, Shape],
    given: Mapping[str, Shape],
    heads: list[list[str]],
    *,
    class_axis: int,
) -> dict[str, Shape]:
    """The expected shapes without the last layer if it is absent, or with its number of classes."""
    for names in heads:
        if not given.keys() & set(names):
            return {name: shape for name, shape in expected.items() if name not in names}
    shapes = dict(expected)
    head = [name for name in heads[-1] if len(given.get(name, ())) == len(shapes[name])]
    for name in head:
        shape = list(shapes[name])
        shape[class_axis] = given[head[0]][class_axis]
        shapes[name] = tuple(shape)
    return shapes


def _check_filter_sizes(
    model: Classifier,
    trained: Mapping[str, Shape],
    filters: Mapping[str, np.ndarray],
    given: Mapping[str, Shape],
) -> None:
    """Where all else fits, the filters in a file say which filter size it was trained with."""
    found, own = _sizes(given), {taps.shape[-1] for taps in filters.values()}
    rest = {name: shape for name, shape in given.items() if not _is_filter(name)}
    if rest == trained and found and found != own:
        name = getattr(model, "name", "")
        raise InputError(
            f"these weights are for {_net_with(found, name)}, the model is {_net_with(own, name)}; "
            "create the model that fits the weights (nnx.update then copies them into another "
            f"filter size{_STATISTICS})"
        )


def _about_filters(
    trained: Mapping[str, Shape], filters: Mapping[str, np.ndarray], given: Mapping[str, Shape]
) -> str:
    """What the filters in a file tell of the net its weights are of."""
    found = _sizes(given)
    if not trained.keys() & given.keys():
        return ""
    if filters and not found:
        return (
            "these weights have no fixed filters (.filt), as those of a baseline; where they were "
            "left out of an antialiased net's, add those of aa_flax.to_torch_state_dict(model)"
        )
    if found and not filters:
        return f"filters of {sorted(found)} taps are in it: it is of an antialiased net"
    if {name: shape for name, shape in given.items() if not _is_filter(name)} == trained:
        return "all but filters fits: these are weights of a net built with other options"
    return ""


def _is_filter(name: str) -> bool:
    return name.rpartition(".")[2] == "filt"


def _sizes(shapes: Mapping[str, Shape]) -> set[int]:
    return {shape[-1] for name, shape in shapes.items() if _is_filter(name) and shape}


def _net_with(filter_sizes: Collection[int], name: str) -> str:
    """Names the variant of the net `name` that has these filter sizes."""
    base = parse_name(name)[0] if name else "the net"
    if not filter_sizes:
        return f"{base} (a baseline, without filters)"
    return " and ".join(f"{base}_lpf{k} (filter size {k})" for k in sorted(filter_sizes))
