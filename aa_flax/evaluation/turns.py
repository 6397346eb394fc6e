"""Evaluates nets by where their weights are: one, or several in turn, what is done being kept."""

import copy
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from string import Formatter
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from aa_flax.config import Config, check_config
from aa_flax.data.classes import check_classes_agree
from aa_flax.data.sources import Source
from aa_flax.data.unlabelled import NoSource
from aa_flax.errors import InputError
from aa_flax.evaluation.evaluator import Plan, agreed, check, check_data, stored
from aa_flax.evaluation.files import Results
from aa_flax.evaluation.measure import Measure
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.predict import check_normalisation
from aa_flax.evaluation.run import (
    evaluate_config,
    facts_of,
    net_options,
    source_for,
    subject_of,
    wanted_measures,
)
from aa_flax.evaluation.summary import summary
from aa_flax.files import local_path, parse_json
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.registry import images_of, list_models, released_weights
from aa_flax.runtime import log_line
from aa_flax.weights.locate import WORDS, Weights, describe, locate

FOLDER = Path("runs/evaluation")  # of nets that have no folder of their own
# Parts of a config that an evaluation says, and what of them belongs to the training all the same.
_OF_EVALUATION = ("name", "model", "pool", "model_options", "dtype", "data", "eval")
_OF_TRAINING = (("data", "augmentation"), ("data", "flip"))
_CLASSES = 1000  # of published weights: ImageNet's


def evaluate_one(
    config: Config, *, weights: str, output: str | None, options: Mapping[str, Any]
) -> Results:
    """Evaluates the config's net with the weights in `weights`.

    Args:
        weights: a run's folder, a file, or `pretrained` and its like; `{model}` stands for the
            net's name.
        output: the results file; None: that of the run, or one named after the weights.
        options: of measures, by name; the first option of each asks for it.

    Raises:
        InputError: anything that does not fit, as far as possible before the net is loaded.
    """
    wanted, values = wanted_measures((), options)
    weights = with_name(weights, config.model)
    found = locate(weights, model=config.model)
    config = _as_trained(config, found)
    source = source_for(config, wanted)
    _check_classes(weights, source)
    _check_class_order(found, source)
    path = local_path(output, "--output") if output else default_output(found)
    plan = Plan(subject_of(config, source, path, values), wanted, _facts(config, found, source))
    if results := _measured_already(plan):
        return results
    check_data(plan.subject, wanted)
    return _load_and_evaluate(found, config, source, path, wanted, values)


def evaluate_in_turn(
    config: Config,
    patterns: Sequence[str],
    *,
    weights: str,
    output: str | None,
    options: Mapping[str, Any],
) -> None:
    """Goes through the nets; one that cannot be evaluated does not keep the others from it.

    Args:
        patterns: names of nets, with `*` and `?`. weights: see `evaluate_one`.
        output: the folder; each net gets `<net>.json` there, and one that has all it is asked for
            is neither loaded nor measured.

    Raises:
        InputError: a mistake in the config or the options, before the first net; or, after the
            last, nets that could not be evaluated.
    """
    wanted, values = wanted_measures((), options)
    with_name(weights, "")
    names = names_of(patterns, weights)
    folder = local_path(output, "--output") if output else FOLDER
    source = source_for(config, wanted)
    _check_classes(weights, source)
    check_data(subject_of(config, source, folder / "results.json", values), wanted)
    failed = []
    for name in names:
        try:
            _take_turn(_with_model(config, name), weights, folder, source, wanted, values)
        except (InputError, OSError, jax.errors.JaxRuntimeError) as error:
            failed.append(name)
            log_line(f"{name} is left out: {error}")
        except KeyboardInterrupt:
            kept = f"what was measured so far is kept in {folder}; the same command continues"
            raise KeyboardInterrupt(kept) from None
    if failed:
        raise InputError(f"{len(failed)} nets could not be evaluated: {', '.join(failed)}")


def _take_turn(
    config: Config,
    weights: str,
    folder: Path,
    source: Source,
    wanted: Sequence[Measure],
    values: Mapping[str, Any],
) -> None:
    """Evaluates one of several nets, unless its results are there."""
    name = config.model
    values = _of_net(name, values)
    found = locate(with_name(weights, name), model=name)
    _check_class_order(found, source)
    config = _as_trained(config, found)
    path = folder / f"{name}.json"
    subject = subject_of(config, source, path, values)
    if not _measured_already(Plan(subject, wanted, _facts(config, found, source))):
        _load_and_evaluate(found, config, source, path, wanted, values)


def _measured_already(plan: Plan) -> Results:
    """Prints and returns what is stored, if that is everything that the plan measures."""
    place, results = stored(plan)
    try:
        text = summary(results) if results else ""
    except KeyError:  # a number is missing, so all are measured
        text = ""
    if not agreed(bool(text)):
        return {}
    log_line(text)
    log_line(f"{place} is there already; to measure again, give another --output or remove it")
    return results


def _facts(config: Config, found: Weights, source: Source) -> dict[str, Any]:
    return facts_of(config, found.name, found.description(), source)


def _load_and_evaluate(
    found: Weights,
    config: Config,
    source: Source,
    output: Path,
    wanted: Sequence[Measure],
    values: Mapping[str, Any],
) -> Results:
    """Whether all fits is known from shapes, before anything is downloaded or read."""
    description = found.description()
    if found.name != config.model.removesuffix("_finetune"):
        what = description.get("file", found.name)
        raise InputError(
            f"{what} holds weights of {found.name}, not of {config.model}; give its --config, or "
            f"--config.model={found.name}"
        )
    options = net_options(config, description)
    if not isinstance(source, NoSource):  # which says how many classes there are
        shapes = found.abstract_model(source.num_classes, **options)
        check(Plan(subject_of(config, source, output, values, shapes), wanted, {}))
    other_images = _other_images(found, config)
    model = found.load_model(dtype=config.dtype, **options)
    log_line(header(model, config, source, description))
    if other_images:
        log_line(other_images)
    return evaluate_config(
        model,
        config,
        weights=description,
        output=output,
        measures=[measure.name for measure in wanted],
        options=values,
        source=source,
    )


def _other_images(found: Weights, config: Config) -> str:
    """What to say where weights know of images of other sizes than the config's; else nothing.

    Raises:
        InputError: they were trained on images that were normalised in another way.
    """
    told = found.config_changes()
    statistics = {name: told[name] for name in ("mean", "std") if name in told}
    check_normalisation(found.name, ModelConfig(**statistics))
    data = config.data
    here: dict[str, Any] = {"resize_size": data.resize_size, "input_size": data.crop_size}
    here["interpolation"] = data.interpolation
    wanted = here | {name: told[name] for name in here if name in told}
    if wanted == here:
        return ""
    return f"note: these weights are for {_in_words(**wanted)}; here: {_in_words(**here)}"


def _in_words(resize_size: int, input_size: int, interpolation: str) -> str:
    resized = f"resized to {resize_size} pixels ({interpolation})" if resize_size else "as they are"
    return f"images {resized}, crops of {input_size}"


def header(model: Classifier, config: Config, source: Source, weights: Mapping[str, Any]) -> str:
    """One line that says what is evaluated, on what."""
    count = sum(array.size for array in jax.tree.leaves(nnx.state(model, nnx.Param)))
    devices = jax.devices()
    net = f"{model.name}, {count:,} parameters, {config.dtype}"
    data = f" {len(source)} images of {source.num_classes} classes ({config.data.name});"
    return (
        f"{net} on {len(devices)} x {devices[0].device_kind};"
        f"{'' if isinstance(source, NoSource) else data} weights: {describe(weights)}"
    )


def default_output(found: Weights) -> Path:
    """Where results go: to the run's folder, beside a file of weights, or to `runs/evaluation`."""
    description = found.description()
    if description["kind"] == "released":
        return FOLDER / f"{found.name}.json"
    path = Path(description["file"])
    if description["kind"] == "run":
        return path / "results.json"
    return path.with_name(f"{path.name.removesuffix('.tar').rpartition('.')[0]}_results.json")


def with_name(weights: str, model: str) -> str:
    """`weights` with the net's name for `{model}`.

    Raises:
        InputError: another placeholder.
    """
    try:
        fields = [field for _, field, *_ in Formatter().parse(weights) if field is not None]
    except ValueError as error:
        raise InputError(
            f"--weights {weights}: {error}; braces stand around {{model}} alone"
        ) from error
    for field in fields:
        if field != "model":
            near = get_close_matches(field, ["model"], cutoff=0)
            raise InputError(
                f"unknown placeholder {{{field}}} in --weights {weights}; did you mean "
                f"{{{near[0]}}}?"
            )
    return weights.format(model=model)


def names_of(patterns: Sequence[str], weights: str) -> list[str]:
    """The nets that patterns name; of a pattern with published weights, those that have some.

    Raises:
        InputError: a pattern that names none.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        names = list_models(pattern)
        if not names:
            raise InputError(f"no net is called {pattern!r}; see aa_flax.list_models()")
        if weights in WORDS and pattern not in names:
            names = _with_published(pattern, weights)
        found |= dict.fromkeys(names)
    return list(found)


def _with_published(pattern: str, weights: str) -> list[str]:
    names = list_models(pattern, pretrained=True)
    if weights != "pretrained":
        known = {r.model for r in released_weights() if r.training == weights}
        names = [name for name in names if name in known]
    if not names:
        raise InputError(f"of the nets {pattern!r} none has {weights} weights; see docs/weights.md")
    return names


def _check_classes(weights: str, source: Source) -> None:
    """Before anything is downloaded."""
    if weights in WORDS and source.num_classes not in (_CLASSES, NoSource.num_classes):
        raise InputError(
            f"published weights are for ImageNet's {_CLASSES} classes, but the data has "
            f"{source.num_classes}; give --config imagenet and --config.data.path, the "
            "folder that holds ImageNet, or other --weights"
        )


def _check_class_order(found: Weights, source: Source) -> None:
    """A run's logits have the order of its own data; in another they would be other classes'."""
    description = found.description()
    path = Path(description.get("file", ""), "data.json")
    if description["kind"] != "run" or not path.is_file():
        return
    try:
        trained = parse_json(path.read_text())["train"]["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the data of a run ({error}); remove it") from error
    if set(trained) == set(map(str, source.class_names)):
        advice = "give the --config.data.class_order of the run"
        check_classes_agree({str(path): trained, "the data": source.class_names}, advice)


def _of_net(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with a file of its own for each net."""
    options = {option.name: option for m in MEASURES.values() for option in m.options}
    return {key: options[key].value_for(name, value) for key, value in values.items()}


def _as_trained(config: Config, found: Weights) -> Config:
    """Returns the config with the weights' interpolation, and their training for the record."""
    asked: dict[Any, Any] = flatten_dict(config.to_dict())
    told = images_of(config.model).interpolation
    told = config.data.interpolation or found.config_changes().get("interpolation", told)
    asked["data", "interpolation"] = told
    trained = flatten_dict(dict(found.config or {}))
    ours = {
        key: value
        for key, value in trained.items()
        if key in asked and (key in _OF_TRAINING or key[0] not in _OF_EVALUATION)
    }
    return check_config(unflatten_dict(asked | ours))


def _with_model(config: Config, name: str) -> Config:
    config = copy.deepcopy(config)
    config.model = name
    return config
