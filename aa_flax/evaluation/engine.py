"""Runs measures on a model: checks everything first, then measures pass by pass and writes each."""

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from aa_flax.config import Config
from aa_flax.data.sources import Source
from aa_flax.data.unlabelled import NoSource
from aa_flax.errors import InputError
from aa_flax.evaluation.measure import Measure, Result, Subject
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.measures.accuracy import accuracy
from aa_flax.evaluation.observe import Observations, observe_source
from aa_flax.evaluation.predict import predictor_of
from aa_flax.evaluation.results import (
    Results,
    as_json,
    find_file,
    has_measured,
    temporary_output,
    with_shift_on_top,
    write_results,
)
from aa_flax.evaluation.settings import Settings
from aa_flax.evaluation.views import Center, check_size
from aa_flax.files import check_writable
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import is_main_process
from aa_flax.weights.locate import describe


@dataclass
class Plan:
    """An evaluation, possibly of a model that is not loaded yet: `set_model` adds it."""

    subject: Subject
    measures: Sequence[Measure]
    facts: Results  # of the experiment: model, weights, data
    replace: bool = False  # other results in the file; else these results go to the next file

    @cached_property
    def settings(self) -> dict[str, Result]:
        """The settings of each measure, by its name."""
        return {m.name: m.settings(self.subject) for m in self.measures}

    def set_model(self, model: Classifier) -> None:
        self.subject = replace(
            self.subject, name=model.name, predictor=predictor_of(model), model=model
        )


def stored(plan: Plan) -> tuple[Path | None, Results]:
    """Returns the file that the results would go to now, and its content if nothing is missing."""
    output = plan.subject.output
    if output is None or plan.replace:
        return output, {}
    path, here = find_file(output, as_json(plan.facts), plan.settings)
    complete = all(
        m.found_in(here) is not None
        if m.always
        else has_measured(here, m.name, plan.settings[m.name], path.parent)
        for m in plan.measures
    )
    return path, here if complete else {}


def check(plan: Plan) -> None:
    """Checks everything that can be checked before anything is measured."""
    stored(plan)  # finds a damaged file
    check_data(plan)
    check_model(plan)


def check_data(plan: Plan) -> None:
    """Checks what needs no model: the output, the size of images, and the measures' options."""
    subject = plan.subject
    if is_main_process() and subject.output is not None:
        check_writable(subject.output, room=True)
    for measure in plan.measures:
        views = measure.views(subject)
        if views is not None:
            size = subject.settings.image_size
            check_size(views, size, size)
        if not measure.needs_model:
            measure.check(subject)


def check_model(plan: Plan) -> None:
    """Checks that the model, which may be of shapes alone, fits the data and the measures."""
    check_classes(plan)
    subject = plan.subject
    for measure in plan.measures:
        if measure.needs_model:
            if subject.model is None:
                raise InputError(
                    f"the measure {measure.name} needs a model of aa_flax, and {subject.name} is a "
                    "function; leave it out, or give a model of create_model"
                )
            measure.check(subject)


def check_classes(plan: Plan) -> None:
    """Checks that the model has as many logits as the data has classes, for crops of this size."""
    subject = plan.subject
    if all(m.of_maps for m in plan.measures) or isinstance(subject.source, NoSource):
        return
    rows = subject.settings.batch(len(subject.source)) // jax.process_count()
    classes = subject.predictor.num_classes(subject.settings.crop_size, rows)
    if classes != subject.source.num_classes:
        both = "the weights and the --config of one data set"
        advice = "a source with as many classes" if subject.model is None else both
        raise InputError(
            f"{subject.name} gives {classes} logits, but the data has "
            f"{subject.source.num_classes} classes; give {advice}"
        )


def run(plan: Plan) -> tuple[Results, Path | None]:
    """Measures everything; the results of each pass over the data are written before the next.

    Returns the results of this call, and the file that contains them. Ctrl-C passes through, with a
    message about what is saved.
    """
    output = plan.subject.output if is_main_process() else None
    path, written = None, None
    results = plan.facts | {"num_images": len(plan.subject.source)}
    circumstances = {  # for the record; the numbers hardly depend on them
        "date": datetime.now(UTC).date().isoformat(),
        **{name: metadata.version(name) for name in ("aa_flax", "jax")},
        "Python": platform.python_version(),
    }
    if not plan.subject.predictor.on_host:
        circumstances["device"] = jax.devices()[0].device_kind
    try:
        with nullcontext(None) if output is None else temporary_output(output) as arrays:
            for found in _passes(plan, arrays or plan.subject.output):
                results |= found
                measured = [m.name for m in plan.measures if m.found_in(results) is not None]
                results["measured"] = dict.fromkeys(measured, circumstances)
                if output is not None:
                    how: Any = {"arrays": arrays, "mine": written, "replace": plan.replace}
                    path, written = write_results(output, results, plan.settings, **how)
                    results |= {name: written[name] for name in found}
    except KeyboardInterrupt:
        kept = f"what was measured so far is kept in {path}"
        raise KeyboardInterrupt(kept if path else "nothing was measured yet") from None
    return with_shift_on_top(results), path


def _passes(plan: Plan, output: Path | None) -> Iterator[Results]:
    """Yields the results of one pass after another; arrays are written next to `output`.

    The first pass is shared by all measures of views of the source: each image is read once, and
    cropped on the device. The other measures follow, each with its own pass.
    """
    subject = replace(plan.subject, output=output)
    views = {m.name: some for m in plan.measures if (some := m.views(subject)) is not None}
    if views:
        settings = subject.settings
        only_center = all(isinstance(some, Center) for some in views.values())
        crop = settings.crop_size if only_center else settings.image_size
        seen = observe_source(
            subject.predictor, subject.source, settings, views, crop=crop, mesh=subject.mesh
        )
        found: Results = {}
        for measure in plan.measures:
            if measure.name in seen:
                found |= _result(plan, measure, seen[measure.name], subject)
        yield found
    for measure in plan.measures:
        if measure.name not in views:
            yield _result(plan, measure, None, subject)


def _result(plan: Plan, measure: Measure, seen: Observations | None, subject: Subject) -> Results:
    """Returns a measure's numbers with its settings, as they are stored in the results."""
    result = {**measure.result(seen, subject), **plan.settings[measure.name]}
    result = _finite(result, measure.name)
    try:
        return measure.stored(as_json(result))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the measure {measure.name} returned what cannot be written as JSON: {error}"
        ) from error


def _finite(value: Any, measure: str) -> Any:
    """Converts numbers and arrays of NumPy and JAX to Python's; they have to be finite."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, Mapping):
        return {str(key): _finite(item, measure) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, measure) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(
            f"the measure {measure} found {value}, which is not finite; the weights are broken, or "
            "their training diverged"
        )
    return value


def accuracy_on(model: Classifier, source: Source, config: Config, mesh: Mesh) -> Result:
    """Computes the accuracy on centre crops of a source; the loss of a diverged model is NaN."""
    settings = Settings.of(config)
    views = {"accuracy": Center(settings.crop_size)}
    seen = observe_source(model, source, settings, views, crop=settings.crop_size, mesh=mesh)
    return accuracy(seen["accuracy"])


def from_first_host(value: bool) -> bool:
    """Returns the first host's value on all hosts, which must take the same branch."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def summary(results: Mapping[str, Any]) -> str:
    """Returns a few lines of text with every number that was measured."""
    of = f", weights: {describe(weights)}" if (weights := results.get("weights")) else ""
    count = f", {results['num_images']} images" if results["num_images"] else ""
    lines = [f"{results['model']}{count}{of}"]
    for measure in MEASURES.values():
        found = measure.found_in(results)
        if found is not None and (line := measure.line(found)) is not None:
            lines.append(f"  {line}")
    return "\n".join(lines)
