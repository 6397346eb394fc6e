"""Evaluates models as a config says: one in memory, or those of `eval`, by where their weights are.

Of several models, those whose results exist are skipped, so the same command resumes.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from aa_flax.config import Config, check_config, images_of_config, options_of_config
from aa_flax.data.classes import check_classes_agree
from aa_flax.data.sources import Source, make_source
from aa_flax.data.unlabelled import NoSource
from aa_flax.errors import InputError
from aa_flax.evaluation import engine
from aa_flax.evaluation.engine import Plan, stored, summary
from aa_flax.evaluation.measure import Measure, Subject, measures_and_options
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.predict import Predictor, check_normalisation
from aa_flax.evaluation.results import Results
from aa_flax.evaluation.settings import Settings, digest_of
from aa_flax.files import local_path, parse_json
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.registry import images_of, list_models, released_weights
from aa_flax.runtime import data_mesh, log_line
from aa_flax.weights.locate import WORDS, WeightsSource, describe, locate

FOLDER = Path("runs/evaluation")  # of models without a run's folder
# Parts of a config that belong to an evaluation, and fields of them that belong to training.
_OF_EVALUATION = ("name", "model", "pool", "model_options", "dtype", "data", "eval")
_OF_TRAINING = (("data", "augmentation"), ("data", "flip"))


def evaluate_config(
    model: Classifier,
    config: Config,
    *,
    weights: Mapping[str, Any],
    output: Path,
    measures: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    replace: bool = False,
    source: Source | None = None,
) -> Results:
    """Evaluates a model in memory; logs, writes and returns the results.

    Results that `output` already has of the same model, weights, data and settings are kept; if it
    has any others, the new results go to the next file (`results_2.json`), unless `replace`. With
    several hosts, each calls this; the first logs and writes.

    Args:
        weights: a description of the weights, for the record; see `aa_flax.weights.locate`.
        measures: names of measures besides accuracy, e.g. `shift`, with their `options` by name.
        source: the images, if they are already open.
    """
    chosen, values = measures_and_options(measures, options or {})
    source = source_for(config, chosen) if source is None else source
    plan = make_plan(config, model.name, weights, source, output, chosen, values)
    plan.replace = replace
    plan.set_model(model)
    engine.check(plan)
    return _measure(plan)


def evaluate_models(
    config: Config,
    models: Sequence[str] = (),
    *,
    weights: str,
    output: str | None,
    options: Mapping[str, Any],
) -> list[Results]:
    """Implements `eval`: evaluates the config's model, or several, of which failures stop no other.

    Args:
        models: names, with `*` and `?`; empty: the config's model.
        weights: a run's folder, a file, or `pretrained` and its like; `{model}` is replaced by the
            model's name.
        output: the results file; for several models the folder of `<model>.json`. None: see
            `default_output`; for several models `runs/evaluation`.
        options: of measures, by name; the first option of each requests it.
    """
    chosen, values = measures_and_options((), options)
    if not models:
        found = locate(with_name(weights, config.model), model=config.model)
        source = source_for(config, chosen)
        _check_published(weights, source)
        path = local_path(output, "--output") if output else default_output(found)
        return [_evaluate_located(found, config, source, path, chosen, values)]
    with_name(weights, "")
    names = names_of(models, weights)
    folder = local_path(output, "--output") if output else FOLDER
    source = source_for(config, chosen)
    _check_published(weights, source)
    engine.check_data(make_plan(config, "", {}, source, folder / "results.json", chosen, values))
    known = {option.name: option for m in MEASURES.values() for option in m.options}
    results, failed = [], []
    for name in names:
        config = copy.deepcopy(config)
        config.model = name
        path = folder / f"{name}.json"
        own = {key: known[key].value_for(name, value) for key, value in values.items()}
        try:
            found = locate(with_name(weights, name), model=name)
            results.append(_evaluate_located(found, config, source, path, chosen, own))
        except (InputError, OSError, jax.errors.JaxRuntimeError) as error:
            failed.append(name)
            log_line(f"{name} is skipped: {error}")
        except KeyboardInterrupt:
            kept = f"what was measured so far is kept in {folder}; the same command continues"
            raise KeyboardInterrupt(kept) from None
    if failed:
        raise InputError(f"{len(failed)} models could not be evaluated: {', '.join(failed)}")
    return results


def _evaluate_located(
    found: WeightsSource,
    config: Config,
    source: Source,
    output: Path,
    measures: Sequence[Measure],
    values: Mapping[str, Any],
) -> Results:
    """Evaluates one model, unless its results exist; checks everything before it is loaded."""
    _check_class_order(found, source)
    config, description = _as_trained(config, found), found.description()
    plan = make_plan(config, found.name, description, source, output, measures, values)
    if results := _measured_already(plan):
        return results
    engine.check_data(plan)
    if found.name != config.model.removesuffix("_finetune"):
        raise InputError(
            f"{description.get('file', found.name)} has weights of {found.name}, not of "
            f"{config.model}; give its --config, or --config.model={found.name}"
        )
    options = model_options(config, description)
    if not isinstance(source, NoSource):  # which gives the number of classes
        plan.set_model(found.abstract_model(source.num_classes, **options))
        engine.check_model(plan)
    note = _note_on_images(found, config)
    model = found.load_model(dtype=config.dtype, **options)
    plan.set_model(model)
    if isinstance(source, NoSource):
        engine.check_model(plan)
    log_line(_header(model, config, source, description))
    if note:
        log_line(note)
    engine.check_classes(plan)  # those of the weights
    return _measure(plan)


def _measure(plan: Plan) -> Results:
    results, path = engine.run(plan)
    asked = plan.subject.output
    log_line(summary(results))
    if path != asked:
        log_line(f"{asked} has other results (of other weights, data or settings) and is unchanged")
    log_line(f"written to {path}")
    return results


def _measured_already(plan: Plan) -> Results:
    """Logs and returns the stored results, if they have everything that the plan measures."""
    path, results = stored(plan)
    text = ""
    with suppress(KeyError):  # a number is missing, so all are measured
        text = summary(results) if results else ""
    if not engine.from_first_host(bool(text)):
        return {}
    log_line(text)
    log_line(f"{path} exists already; to measure again, give another --output or remove it")
    return results


def source_for(config: Config, measures: Sequence[Measure]) -> Source:
    """Opens the labelled images of the config, unless no measure needs them."""
    if all(measure.brings_images for measure in measures):
        return NoSource()
    return make_source(config.data, "val")


def make_plan(
    config: Config,
    model: str,
    weights: Mapping[str, Any],
    source: Source,
    output: Path,
    measures: Sequence[Measure],
    options: Mapping[str, Any],
) -> Plan:
    """Returns a plan for a model that is not loaded yet."""
    settings = Settings.of(config)
    names = () if isinstance(source, NoSource) else ("name", "path", "class_order")
    data = {name: getattr(config.data, name) for name in names}
    facts: dict[str, Any] = {
        "model": model,
        "weights": dict(weights),
        "dtype": str(config.dtype),
        "data": data | settings.experiment() | digest_of(source),
        "config": json.loads(config.to_json()),
    }
    if of_model := model_options(config, weights):
        facts["options"] = of_model

    def not_loaded(*_: Any) -> Any:
        raise AssertionError("a measure called the model before it was loaded")

    subject = Subject(
        config.model, Predictor(not_loaded), None, source, settings, data_mesh(), output, options
    )
    return Plan(subject, measures, facts)


def model_options(config: Config, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the model, `pool` included: those of the weights and the config's.

    Those of a run's weights have to agree with the config's, if it has any.
    """
    options = dict(weights.get("options") or {})
    given = options_of_config(config.to_dict())
    if weights.get("kind") == "run" and given and given != options:
        raise InputError(
            f"the run in {weights.get('file')} was trained with the options {options or 'none'}, "
            f"but the config has {given}; leave out --config.pool and --config.model_options"
        )
    return options | given


def _header(model: Classifier, config: Config, source: Source, weights: Mapping[str, Any]) -> str:
    """Returns one line about model, devices, data and weights."""
    count = sum(array.size for array in jax.tree.leaves(nnx.state(model, nnx.Param)))
    devices = jax.devices()
    data = f" {len(source)} images of {source.num_classes} classes ({config.data.name});"
    return (
        f"{model.name}, {count:,} parameters, {config.dtype} on {len(devices)} x "
        f"{devices[0].device_kind};{'' if isinstance(source, NoSource) else data} weights: "
        f"{describe(weights)}"
    )


def _note_on_images(found: WeightsSource, config: Config) -> str:
    """Checks the normalisation of the weights' images; returns a note if their sizes differ."""
    changes = found.config_changes()
    statistics = {name: changes[name] for name in ("mean", "std") if name in changes}
    check_normalisation(found.name, ModelConfig(**statistics))
    here = images_of_config(config.to_dict())
    wanted = here | {name: changes[name] for name in here if name in changes}

    def images(resize_size: int, input_size: int, interpolation: str) -> str:
        how = f"resized to {resize_size} pixels ({interpolation})" if resize_size else "as they are"
        return f"images {how}, crops of {input_size}"

    if wanted == here:
        return ""
    return f"note: these weights are for {images(**wanted)}; here: {images(**here)}"


def default_output(found: WeightsSource) -> Path:
    """Returns the file in the run's folder, next to a weights file, or in `runs/evaluation`."""
    description = found.description()
    if description["kind"] == "released":
        return FOLDER / f"{found.name}.json"
    path = Path(description["file"])
    if description["kind"] == "run":
        return path / "results.json"
    return path.with_name(f"{path.name.removesuffix('.tar').rpartition('.')[0]}_results.json")


def with_name(weights: str, model: str) -> str:
    """Returns `weights` with the model's name for `{model}`, the only placeholder."""
    try:
        return weights.format(model=model)
    except (LookupError, ValueError, AttributeError) as error:
        raise InputError(
            f"--weights {weights} has an unknown placeholder ({error}); the only one is {{model}}"
        ) from error


def names_of(patterns: Sequence[str], weights: str) -> list[str]:
    """Returns the models that patterns match; with published weights, those that have some."""
    found: dict[str, None] = {}
    for pattern in patterns:
        names = list_models(pattern)
        if not names:
            raise InputError(f"no model matches {pattern!r}; see aa_flax.list_models()")
        if weights in WORDS and pattern not in names:
            names = list_models(pattern, pretrained=True)
            if weights != "pretrained":
                known = {r.model for r in released_weights() if r.training == weights}
                names = [name for name in names if name in known]
            if not names:
                raise InputError(
                    f"no model that matches {pattern!r} has {weights} weights; see docs/weights.md"
                )
        found |= dict.fromkeys(names)
    return list(found)


def _check_published(weights: str, source: Source) -> None:
    """Checks the number of classes before anything is downloaded."""
    if weights in WORDS and source.num_classes not in (1000, NoSource.num_classes):
        raise InputError(
            "published weights are for ImageNet's 1000 classes, but the data has "
            f"{source.num_classes}; give --config imagenet and --config.data.path, the "
            "folder of ImageNet, or other --weights"
        )


def _check_class_order(found: WeightsSource, source: Source) -> None:
    """Checks that the data numbers its classes like the run's, whose order the logits have."""
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


def _as_trained(config: Config, found: WeightsSource) -> Config:
    """Returns the config with the weights' interpolation, and their training for the record."""
    asked: dict[Any, Any] = flatten_dict(config.to_dict())
    default = found.config_changes().get("interpolation", images_of(config.model).interpolation)
    asked["data", "interpolation"] = config.data.interpolation or default
    for key, value in flatten_dict(dict(found.config or {})).items():
        if key in asked and (key in _OF_TRAINING or key[0] not in _OF_EVALUATION):
            asked[key] = value
    return check_config(unflatten_dict(asked))
