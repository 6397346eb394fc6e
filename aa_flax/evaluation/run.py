"""Evaluates nets as a config says, and writes what was found."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from aa_flax.config import Config, options_of_config
from aa_flax.data.sources import Source, make_source
from aa_flax.data.unlabelled import NoSource
from aa_flax.errors import InputError
from aa_flax.evaluation.accuracy import Accuracy, accuracy
from aa_flax.evaluation.evaluator import Plan, check, run, stored
from aa_flax.evaluation.files import Results
from aa_flax.evaluation.measure import (
    Measure,
    Subject,
    chosen_measures,
    need_no_source,
    option_values,
)
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.observe import observe
from aa_flax.evaluation.predict import Predictor, predictor_of
from aa_flax.evaluation.settings import Settings
from aa_flax.evaluation.summary import summary
from aa_flax.evaluation.views import Center
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import data_mesh, log_line, progress_bar


def accuracy_on(model: Classifier, source: Source, config: Config, mesh: Mesh) -> Accuracy:
    """Accuracy on the centre crops of a source's images; it may be that of a net that diverged."""
    settings = Settings.of(config)
    views = {"accuracy": Center(settings.crop_size)}
    batches = settings.batches(source, settings.crop_size)
    with progress_bar(len(source), "accuracy") as bar:
        return accuracy(observe(model, batches, views, mesh=mesh, progress=bar)["accuracy"])


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
    """Measures accuracy and whatever else is asked for; prints it and writes it to `output`.

    What `output` already holds of the same net, weights, data and settings stays in it; what it
    holds of anything else stays too, and these results are written beside it (`results_2.json`).
    With several hosts, each calls this; the first prints and writes.

    Args:
        weights: a description of the weights, for the record; see `aa_flax.weights.locate`.
        output: the `results.json` to write: every number with its settings. Arrays and figures go
            to files beside it, whose names begin with its own.
        measures: names of measures beside accuracy, e.g. `shift`.
        options: of the measures, by name.
        replace: the file is the net's own record: what it holds of anything else goes.
        source: the images, where they are open already.

    Returns:
        The results of this call.

    Raises:
        InputError: a net that does not fit the data, data that does not fit what is asked for, or
            a file that cannot be written; all of that before anything is measured.
    """
    wanted, values = wanted_measures(measures, options or {})
    source = source_for(config, wanted) if source is None else source
    facts = facts_of(config, model.name, weights, source)
    subject = subject_of(config, source, output, values, model)
    plan = Plan(subject, wanted, facts, replace)
    stored(plan)  # a damaged file is found now
    check(plan)
    results, place = run(plan)
    _tell_results(results, output, place)
    return results


def wanted_measures(
    names: Sequence[str], options: Mapping[str, Any]
) -> tuple[list[Measure], dict[str, Any]]:
    """The measures of `aa_flax.eval` that were asked for, and all options.

    Accuracy is among them, unless all that was asked for bring images of their own.
    """
    values = option_values(options)
    asked = chosen_measures(names, values)
    if need_no_source(asked):
        return asked, values
    always = [measure.name for measure in MEASURES.values() if measure.always]
    return chosen_measures([*always, *names], values), values


def source_for(config: Config, measures: Sequence[Measure]) -> Source:
    """The labelled images that the config names, or none where no measure needs them."""
    return NoSource() if need_no_source(measures) else make_source(config.data, "val")


def facts_of(
    config: Config, model: str, weights: Mapping[str, Any], source: Source
) -> dict[str, Any]:
    """What is evaluated, for the results: net, weights, data, and the whole config."""
    names = () if isinstance(source, NoSource) else ("name", "path", "class_order")
    data = {name: getattr(config.data, name) for name in names}
    data |= Settings.of(config).experiment() | digest_of(source)
    facts: dict[str, Any] = {"model": model, "weights": dict(weights)}
    facts |= {"dtype": str(config.dtype), "data": data, "config": json.loads(config.to_json())}
    options = net_options(config, weights)
    return facts | ({"options": options} if options else {})


def net_options(config: Config, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the net, `pool` among them: those of the weights, and the config's.

    Raises:
        InputError: weights of a run that was trained with others than the config's.
    """
    options = dict(weights.get("options") or {})
    given = options_of_config(config.to_dict())
    if weights.get("kind") == "run" and given and given != options:
        raise InputError(
            f"the run in {weights.get('file')} was trained with the options {options or 'none'}, "
            f"but the config says {given}; leave out --config.pool and --config.model_options"
        )
    return options | given


def digest_of(source: Source) -> dict[str, str]:
    """The hash of what a source holds, if it has one."""
    digest = getattr(source, "digest", None)
    return {} if digest is None else {"digest": str(digest())}


def subject_of(
    config: Config,
    source: Source,
    output: Path,
    options: Mapping[str, Any],
    model: Classifier | None = None,
) -> Subject:
    """A net as a config evaluates it; None: one that is not loaded yet."""
    predictor = Predictor(_not_loaded) if model is None else predictor_of(model)
    name = config.model if model is None else model.name
    settings, mesh = Settings.of(config), data_mesh()
    return Subject(name, predictor, model, source, settings, mesh, output, options)


def _not_loaded(*_: Any) -> Any:
    raise AssertionError("a measure called the net before it was loaded")


def _tell_results(results: Results, asked: Path, output: Path | None) -> None:
    log_line(summary(results))
    if output != asked:
        log_line(f"{asked} holds other results (of other weights, data or settings) and stays")
    log_line(f"written to {output}")
