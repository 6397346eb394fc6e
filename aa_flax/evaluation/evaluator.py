"""Runs measures over a net: all that can be wrong first, then pass by pass, writing as it goes."""

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

from aa_flax.data.unlabelled import NoSource
from aa_flax.errors import InputError
from aa_flax.evaluation.files import (
    Results,
    as_json,
    check_writable,
    has_measured,
    place_of,
    unplaced,
    with_aliases,
    write_results,
)
from aa_flax.evaluation.measure import Measure, Result, Subject, check_numbers
from aa_flax.evaluation.observe import Observations, observe
from aa_flax.evaluation.views import Center, check_size
from aa_flax.runtime import is_main_process, progress_bar


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

    @cached_property
    def settings(self) -> dict[str, Result]:
        """The settings of each measure, by its name; accuracy has none."""
        return {m.name: m.settings(self.subject) for m in self.measures if not m.always}


def stored(plan: Plan) -> tuple[Path | None, Results]:
    """Finds the file that the results would go to now.

    Returns:
        Its path, and its content if that has everything the plan measures; else nothing.

    Raises:
        InputError: a results file there that is damaged.
    """
    output = plan.subject.output
    if output is None or plan.replace:
        return output, {}
    place, here = place_of(output, as_json(plan.facts), plan.settings)
    has_accuracy = "top1" in here or len(plan.settings) == len(plan.measures)
    has_all = all(has_measured(here, n, s, place.parent) for n, s in plan.settings.items())
    return place, here if has_accuracy and has_all else {}


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
    rows = subject.settings.batch(len(subject.source)) // jax.process_count()
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


def run(plan: Plan) -> tuple[Results, Path | None]:
    """Measures everything; the results of a pass over the data are written before the next.

    Returns:
        The results of this call, and the file that they went to.

    Raises:
        KeyboardInterrupt: as it came, with a message of what is kept.
    """
    output = plan.subject.output if is_main_process() else None
    place, held = None, None
    results = plan.facts | {"num_images": len(plan.subject.source)}
    circumstances = _circumstances(plan.subject)
    try:
        with nullcontext(plan.subject.output) if output is None else unplaced(output) as arrays:
            for found in _passes(replace(plan, subject=replace(plan.subject, output=arrays))):
                results |= found
                measured = [m.name for m in plan.measures if m.found_in(results) is not None]
                results["measured"] = dict.fromkeys(measured, circumstances)
                if output is not None:
                    place, held = write_results(
                        output,
                        results,
                        plan.settings,
                        arrays=arrays,
                        mine=held,
                        replace=plan.replace,
                    )
                    results |= {name: held[name] for name in found}
    except KeyboardInterrupt:
        kept = f"what was measured so far is kept in {place}"
        raise KeyboardInterrupt(kept if place else "nothing was measured yet") from None
    return with_aliases(results), place


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
