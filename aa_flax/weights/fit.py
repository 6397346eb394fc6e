"""Fits weights to a model: every name has its variable, or there is one error and no change."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import parse_name
from aa_flax.weights import state_dicts
from aa_flax.weights.read import Weights
from aa_flax.weights.state_dicts import COUNTER, Slot

Shape = tuple[int, ...]

# The numbers are those of docs/true_weights.md.
_STATISTICS = (
    "; the statistics of batch norms no longer fit then: a MobileNetV2 copied into _lpf4 fell from "
    "77.5 to 12.5 % top-1, and aa_flax.match_statistics(model, source, images) brought back 77.5 %"
)


def named_weights(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns a model's parameters and batch statistics by path, e.g. `layer1.0.conv1.kernel`."""
    return {
        ".".join(map(str, path)): variable
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    }


def set_weights(model: nnx.Module, arrays: Mapping[str, Any]) -> None:
    """Copies arrays into the variables of these names, as the variables' types."""
    variables = named_weights(model)
    for name, array in arrays.items():
        variable = variables[name]
        # A copy, by NumPy: JAX may otherwise share the memory of a tensor that torch changes later,
        # or compile a program for each shape.
        variable.set_value(jax.device_put(np.array(array, variable.dtype)))


def last_layer(model: nnx.Module) -> list[str]:
    """Returns the names of the last layer's variables; [] for a model without one.

    The last layer is the last linear one at the top of the model, `fc3` of `fc1` to `fc3`.
    """
    if getattr(model, "num_classes", None) == 0:
        return []
    return _variables_of(model, _linear_layers(model)[-1:])


def _linear_layers(model: nnx.Module) -> list[str]:
    return [name for name, layer in vars(model).items() if isinstance(layer, nnx.Linear)]


def _variables_of(model: nnx.Module, layers: Collection[str]) -> list[str]:
    return [name for name in named_weights(model) if name.partition(".")[0] in layers]


def options_of(model: nnx.Module) -> dict[str, Any]:
    """Returns what sets a model apart from the default one of its name, as a file stores it."""
    return json.loads(json.dumps(dict(getattr(model, "options", {}))))


def check_same_model(weights: Weights, model: nnx.Module) -> None:
    """Refuses weights of another model or other options, as far as both are known."""
    own = getattr(model, "name", "")
    if not own:
        return
    if weights.model and weights.model != own:
        raise InputError(
            f"{weights.label} has weights of {weights.model}, not of {own}; create that model "
            f"(to start {own} from them: nnx.update(model, nnx.state(other)){_STATISTICS})"
        )
    if weights.options is None:
        return
    options = options_of(model)
    # Dilation instead of a stride changes the use of the weights, not the weights: any may be
    # loaded where it is requested; those trained with it need it.
    dilation = {name: value for name, value in options.items() if name == "output_stride"}
    if {**weights.options, **dilation} != options:
        raise InputError(
            f"{weights.label} has weights of {own} with {_listed(weights.options)}, this model "
            f"has {_listed(options)}; create it with the former (to start it from them all the "
            "same: nnx.update(model, nnx.state(other)))"
        )


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in sorted(options.items())) or "the default options"


def check_names_and_shapes(
    expected: Mapping[str, Shape], given: Mapping[str, Shape], hint: str = ""
) -> None:
    """Compares names and shapes; one error lists all differences, and `hint` with them."""
    problems = []
    if missing := [name for name in expected if name not in given]:
        problems.append(f"missing in the weights: {_some(missing)}")
    if unknown := [name for name in given if name not in expected]:
        problems.append(f"not in the model: {_some(unknown)}")
    both = [name for name in expected if name in given and given[name] != expected[name]]
    if shapes := [f"{name} {given[name]}, the model has {expected[name]}" for name in both]:
        problems.append(f"other shapes: {_some(shapes)}")
    if not problems:
        return
    if not expected.keys() & given.keys():
        problems.append(_found(given))
    problems += [hint] if hint else []
    raise InputError("the weights do not fit the model; " + "; ".join(problems))


def _found(names: Collection[str]) -> str:
    if not names:
        return "there are no weights in it"
    prefixes = state_dicts.common_prefixes(names) if len(names) > 1 else []
    under = f", all under {prefixes[-1]}" if prefixes else ""
    return f"no name is one of the model's, found are {_some(names, 3)}{under}"


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _check_floats(arrays: Mapping[str, np.ndarray], label: str) -> None:
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):  # quantized, for example
            raise InputError(
                f"{label}: {name} is of type {array.dtype}; weights are floating-point numbers"
            )
        if not np.isfinite(array).all():
            raise InputError(
                f"{label}: {name} has values that are not finite (or beyond float32); its training "
                "diverged, or the file is damaged"
            )


def fit(model: Classifier, weights: Weights, *, any_head: bool = False) -> dict[str, np.ndarray]:
    """Returns the arrays by this package's names, once all of them fit the model.

    Args:
        model: the model, abstract or not; it is not changed.
        any_head: the last layer may be absent, or have another number of classes; so may the whole
            classifier where torch keeps it apart from the trunk (three layers of VGG and AlexNet).
    """
    if weights.torch_names:
        return _fit_torch(model, weights, any_head)
    check_same_model(weights, model)
    expected = {name: tuple(v.shape) for name, v in named_weights(model).items()}
    given = {name: array.shape for name, array in weights.arrays.items()}
    if any_head:
        expected = _with_any_head(expected, given, [last_layer(model)], class_axis=-1)
    linear = _variables_of(model, _linear_layers(model))
    check_names_and_shapes(expected, given, _about_a_trunk(expected, given, linear))
    _check_floats(weights.arrays, weights.label)
    return dict(weights.arrays)


def _fit_torch(model: Classifier, weights: Weights, any_head: bool) -> dict[str, np.ndarray]:
    slots, filters = state_dicts.torch_slots(model), state_dicts.torch_filters(model)
    counters = {n.replace("running_mean", COUNTER) for n in slots if n.endswith("running_mean")}
    expected = [*slots, *filters, *counters]
    arrays = state_dicts.match_names(weights.arrays, expected, weights.label)
    arrays = {name: array for name, array in arrays.items() if name not in counters}
    given = {name: array.shape for name, array in arrays.items()}
    trained = {name: slot.torch_shape for name, slot in slots.items()}
    if any_head:
        head = _torch_names(model, slots, last_layer(model))
        # torch keeps the last layer in one Sequential with other layers of the classifier.
        groups = {name.partition(".")[0] for name in head}
        classifier = [name for name in slots if name.partition(".")[0] in groups]
        trained = _with_any_head(trained, given, [classifier, head], class_axis=0)
    expected = trained | {name: taps.shape for name, taps in filters.items()}
    hint = _about_filters(model, trained, filters, given)
    linear = _torch_names(model, slots, _variables_of(model, _linear_layers(model)))
    check_names_and_shapes(expected, given, hint or _about_a_trunk(expected, given, linear))
    _check_floats(arrays, weights.label)
    for name, taps in filters.items():
        if not np.allclose(arrays[name], taps, rtol=1e-6, atol=0):
            raise InputError(
                f"{name} is not the model's filter (binomial, for a BlurPool); these weights are "
                "of another model"
            )
    names = {id(variable): name for name, variable in named_weights(model).items()}
    return {names[id(slots[n].variable)]: slots[n].from_torch(arrays[n]) for n in trained}


def _torch_names(model: Classifier, slots: Mapping[str, Slot], names: Collection[str]) -> list[str]:
    variables = named_weights(model)
    wanted = {id(variables[name]) for name in names}
    return [name for name, slot in slots.items() if id(slot.variable) in wanted]


def _with_any_head(
    expected: Mapping[str, Shape],
    given: Mapping[str, Shape],
    heads: list[list[str]],
    *,
    class_axis: int,
) -> dict[str, Shape]:
    """Returns the shapes expected without the first head that is absent, or with its classes."""
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


def _about_a_trunk(
    expected: Mapping[str, Shape], given: Mapping[str, Shape], linear: Collection[str]
) -> str:
    """Returns a remedy where weights lack layers of the classifier and nothing else; else ""."""
    missing = expected.keys() - given.keys()
    if not missing or not missing <= set(linear) or given.keys() - expected.keys():
        return ""
    return (
        "these are the weights of a trunk: create_model(NAME, pretrained=FILE, num_classes=N) "
        "gives it a new classifier, features_only=True leaves the classifier out"
    )


def _about_filters(
    model: Classifier,
    trained: Mapping[str, Shape],
    filters: Mapping[str, np.ndarray],
    given: Mapping[str, Shape],
) -> str:
    """Returns what the fixed filters of weights show about their model; "" for nothing.

    Where everything fits but the filters' sizes, an InputError says which variant would fit.
    """
    found = {s[-1] for name, s in given.items() if name.endswith(".filt") and s}
    own = {taps.shape[-1] for taps in filters.values()}
    rest_fits = {name: s for name, s in given.items() if not name.endswith(".filt")} == trained
    if rest_fits and found and found != own:
        base = parse_name(model.name)[0] if getattr(model, "name", "") else "the model"
        raise InputError(
            f"these weights are for {_variants(base, found)}, the model is {_variants(base, own)}; "
            "create the model that fits the weights (nnx.update then copies them into another "
            f"filter size{_STATISTICS})"
        )
    if not trained.keys() & given.keys():
        return ""
    if filters and not found:
        return (
            "these weights have no fixed filters (.filt), as those of a baseline; where they were "
            "removed from an antialiased model's, add those of aa_flax.to_torch_state_dict(model)"
        )
    if found and not filters:
        return f"filters of {sorted(found)} taps are in it: it is of an antialiased model"
    others = "all but filters fits: these are weights of a model built with other options"
    return others if rest_fits else ""


def _variants(base: str, filter_sizes: Collection[int]) -> str:
    if not filter_sizes:
        return f"{base} (a baseline, without filters)"
    return " and ".join(f"{base}_lpf{k} (filter size {k})" for k in sorted(filter_sizes))
