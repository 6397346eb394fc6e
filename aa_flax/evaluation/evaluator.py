"""Runs measures over a net: all that can be wrong first, then pass by pass, writing as it goes."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from aa_flax.data.pictures import NoSource
from aa_flax.errors import InputError
from aa_flax.evaluation.files import (
    Results,
    as_json,
    check_writable,
    place_of,
    with_aliases,
    write_results,
)
from aa_flax.evaluation.measure import Measure, Result, Subject, check_numbers
from aa_flax.evaluation.observe import Observations, observe
from aa_flax.evaluation.views import Center, check_size
from aa_flax.progress import progress_bar
from aa_flax.sharding import is_main_process


@dataclass(frozen=True)
class Plan:
    """What is measured of a net, and where that is written.

    Attributes:
        facts: of the experiment, for the results: net, weights, data.
        replace: whether the results file belongs to whoever asks, so that what it holds of
            anything else goes; else that stays and these results stand beside it.
    """

    subject: Subject
    measures: Sequence[Measure]
    facts: Results
    replace: bool = False


def placed(plan: Plan) -> tuple[Plan, bool]:
    """The plan with the file that its results go to, and whether they are all there already.

    Raises:
        InputError: a damaged results file stands there.
    """
    output = plan.subject.output
    if output is None or plan.replace:
        return plan, False
    settings = {m.name: m.settings(plan.subject) for m in plan.measures if not m.always}
    with_accuracy = len(settings) < len(plan.measures)
    output, done = place_of(output, as_json(plan.facts), settings, with_accuracy=with_accuracy)
    return replace(plan, subject=replace(plan.subject, output=output)), done


def check(plan: Plan) -> None:
    """Finds what can be found before anything is measured.

    Raises:
        InputError: a net that does not fit the data, data that does not fit what is asked for, or
            a results file that cannot be written.
    """
    subject = plan.subject
    check_data(subject, plan.measures)
    of_maps = all(measure.of_maps for measure in plan.measures)
    if not (of_maps or isinstance(subject.source, NoSource)):
        _check_classes(subject)
    for measure in plan.measures:
        if measure.needs_model:
            if subject.model is None:
                raise InputError(
                    f"the measure {measure.name} looks into a net of aa_flax; {subject.name} is a "
                    "function: leave it out, or give a net of create_model"
                )
            measure.check(subject)


def _check_classes(subject: Subject) -> None:
    rows = subject.settings.batch_size // jax.process_count()
    classes = subject.predictor.num_classes(subject.settings.crop_size, rows)
    if classes != subject.source.num_classes:
        one = "the weights and the --config of one data set"
        advice = "a source of as many classes" if subject.model is None else one
        raise InputError(
            f"{subject.name} gives {classes} logits, but the data has "
            f"{subject.source.num_classes} classes; give {advice}"
        )


def check_data(subject: Subject, measures: Sequence[Measure]) -> None:
    """The part of `check` that needs no net."""
    if is_main_process() and subject.output is not None:
        check_writable(subject.output)
    for measure in measures:
        views = measure.views(subject)
        if views is not None:
            size = subject.settings.image_size
            check_size(views, size, size)
        if not measure.needs_model:
            measure.check(subject)


def run(plan: Plan) -> Results:
    """Measures everything; what one pass over the data has found is written before the next.

    Returns:
        The results of this call.

    Raises:
        KeyboardInterrupt: as it came, saying what is kept.
    """
    results, output = plan.facts | {"num_images": len(plan.subject.source)}, plan.subject.output
    circumstances = _circumstances(plan.subject)
    kept = "nothing was measured yet"
    try:
        for found in _passes(plan):
            results |= found
            measured = [m.name for m in plan.measures if m.found_in(results) is not None]
            results["measured"] = dict.fromkeys(measured, circumstances)
            if output is not None:
                if is_main_process():
                    write_results(output, results, replace=plan.replace)
                kept = f"what was measured so far is kept in {output}"
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept) from None
    return with_aliases(results)


def _circumstances(subject: Subject) -> dict[str, str]:
    """When and by what something is measured, for the record: numbers hardly depend on it."""
    device = {} if subject.predictor.on_host else {"device": jax.devices()[0].device_kind}
    versions = {name: metadata.version(name) for name in ("aa_flax", "jax")}
    date, python = datetime.now(UTC).date().isoformat(), platform.python_version()
    return {"date": date, **versions, "Python": python, **device}


def _passes(plan: Plan) -> Iterator[Results]:
    """The results of each pass in turn."""
    subject = plan.subject
    shown = {measure: measure.views(subject) for measure in plan.measures}
    views = {m.name: some for m, some in shown.items() if some is not None}
    if views:
        seen = _look(subject, views)
        found: Results = {}
        for measure in shown:
            if measure.name in seen:
                found |= _stored(measure, seen[measure.name], subject)
        yield found
    for measure, some in shown.items():
        if some is None:
            yield _stored(measure, None, subject)


def _look(subject: Subject, views: Mapping[str, Any]) -> dict[str, Observations]:
    """Each image is read once for all views, and cut on the device."""
    source, settings = subject.source, subject.settings
    as_it_is = all(isinstance(some, Center) for some in views.values())
    crop = settings.crop_size if as_it_is else settings.image_size
    with progress_bar(len(source), ", ".join(views)) as bar:
        batches = settings.batches(source, crop)
        return observe(subject.predictor, batches, views, mesh=subject.mesh, progress=bar)


def _stored(measure: Measure, seen: Observations | None, subject: Subject) -> Results:
    """A measure's numbers with its settings, as they stand in the results."""
    result: Result = _plain({**measure.result(seen, subject), **measure.settings(subject)})
    check_numbers(measure, result)
    try:
        return measure.stored(as_json(result))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the measure {measure.name} gave what is nothing for a JSON file: {error}"
        ) from error


def _plain(value: Any) -> Any:
    """NumPy's and JAX's numbers and arrays as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    return value


def agreed(value: bool) -> bool:
    """What the first host says, on all: they must go the same way."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))
