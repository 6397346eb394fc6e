"""The interface of measures: options, the views that a model gets, numbers, report columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh

from aa_flax.data.sources import Source
from aa_flax.errors import InputError, Table, UnknownName, unknown
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.predict import Predictor
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.settings import Settings
from aa_flax.evaluation.views import Views
from aa_flax.files import local_path

Result = dict[str, Any]  # numbers of a measure as they are stored: JSON values


@dataclass(frozen=True)
class Option:
    """A flag of `python -m aa_flax.eval`, and an argument of `aa_flax.evaluate`.

    The first option of a measure has the measure's name and requests it: a bool, or a value such as
    a folder.
    """

    name: str  # without dashes
    help: str  # one line for `--help`
    default: Any = False
    kind: type = bool  # or `int`, `float`, `str`, `Path`, or `tuple` (of integers: `0,5,9`)
    written: bool = False  # a file that the measure writes, a separate one for each model

    def value(self, given: Any) -> Any:
        """Converts a value for the measure: a `Path` with `~` expanded, a tuple of integers.

        Raises:
            InputError: it is of another kind.
        """
        if isinstance(given, np.generic):
            given = given.item()
        if given is None or given == self.default:
            return self.default
        if self.kind is Path and isinstance(given, str | Path):
            return local_path(given, f"--{self.name}")
        if self.kind is tuple:
            parts = given.split(",") if isinstance(given, str) else given
            parts = [str(part) for part in (parts if isinstance(parts, Iterable) else [parts])]
            if not parts or not all(part.isdecimal() for part in parts):
                shown = ",".join(parts)
                raise InputError(f"--{self.name} takes integers such as 0,5,9; got {shown}")
            return tuple(map(int, parts))
        if self.kind is float and type(given) is int:
            return float(given)
        if type(given) is not self.kind:
            raise InputError(
                f"the option {self.name} takes a {self.kind.__name__}, got {given!r}: {self.help}"
            )
        return given

    def value_for(self, model: str, value: Any) -> Any:
        """Returns the value for one of several models: `p_resnet18.npz` for `p.npz`."""
        if not self.written or value is None:
            return value
        return value.with_name(f"{value.stem}_{model}{value.suffix}")


@dataclass(frozen=True)
class Column:
    """A column of the report."""

    title: str
    key: tuple[str, ...]  # the path to its number in the measure's result
    unit: str = "%"  # or `ms`, or ""
    judged: bool = False  # larger numbers are better, for the report's Pareto front
    note: str = ""  # explains it in the report
    interval: str = ""  # key, next to the number, of the two ends of its interval


@dataclass(frozen=True)
class Subject:
    """A model, data and settings: everything that a measure may use."""

    name: str  # of the model, for titles
    predictor: Predictor  # `predictor.logits(images)`: of `(N, H, W, 3)` with values in 0..255
    model: Any  # a model of this package, in `Measure.check` perhaps of shapes alone; else None
    source: Source
    settings: Settings  # how images are cropped and shifted
    mesh: Mesh
    output: Path | None = None  # the results file, next to which a measure may write others
    options: Mapping[str, Any] = field(default_factory=dict)  # of all measures


class Measure:
    """A measure of a model; pass an instance of a subclass to `register_measure`.

    Examples:
        >>> from aa_flax import Measure, Option
        >>> from aa_flax.evaluation.views import Center
        >>> class Confidence(Measure):
        ...     options = (Option("confidence", "mean probability of the true class"),)
        ...
        ...     def views(self, subject):
        ...         return Center(subject.settings.crop_size)
        ...
        ...     def result(self, seen, subject):
        ...         return {"percent": 100 * seen.probability.mean()}
        >>> Confidence().name
        'confidence'
    """

    # Its flags; the first has the measure's name, under which the results have its numbers.
    options: ClassVar[tuple[Option, ...]]
    columns: ClassVar[tuple[Column, ...]] = ()  # of the report
    needs_model: ClassVar[bool] = False  # a model of this package, not only its outputs
    always: ClassVar[bool] = False  # `aa_flax.eval` always measures it, without a flag
    of_maps: ClassVar[bool] = False  # of functions to maps; `aa_flax.eval` has no flag for it
    # It uses separate images, which need no labels, instead of the subject's source. If all
    # requested measures do, the source is a `NoSource`, and `always` is ignored.
    brings_images: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.options[0].name

    def settings(self, subject: Subject) -> Result:
        """Returns what the numbers depend on besides model, weights, data and crops.

        It is stored with the numbers; results with other settings are not overwritten. Default: the
        fields of the views.
        """
        views = self.views(subject)
        return {} if views is None else dict(vars(views))

    def check(self, subject: Subject) -> None:
        """Raises an InputError, before anything is measured, if this measure cannot be."""

    def views(self, subject: Subject) -> Views | None:
        """Returns the views of every image; None: the measure calls the model itself."""
        return None

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        """Returns the numbers, from the observations of its views. Its settings are added."""
        raise NotImplementedError

    def line(self, result: Result) -> str | None:
        """Returns its line of the summary, without indentation; None: it has none."""
        return None

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        """Draws plots of all of the report's rows that have this measure; returns the files."""
        return []

    def section(self, rows: Sequence[Row]) -> str:
        """Returns its section of the report, as Markdown, about all rows that have this measure."""
        return ""

    def path(self, column: Column) -> tuple[str, ...]:
        """Returns the path to a column's number in the results."""
        return (self.name, *column.key)

    def found_in(self, results: Mapping[str, Any]) -> Result | None:
        """Returns the measure's numbers from the results of a model, if it was measured."""
        found = results.get(self.name)
        return found if isinstance(found, dict) else None

    def stored(self, result: Result) -> Result:
        """Returns the entries of the results that contain the numbers."""
        return {self.name: result}


MEASURES: Table[Measure] = Table("measure")


def register_measure(measure: Measure, *, replace: bool = False) -> None:
    """Adds a measure: its flags of `aa_flax.eval`, line of the summary, columns of the report.

    Two measures may share an option if it is the same `Option` object.

    Raises:
        InputError: another measure has its name or an option of that name.

    Examples:
        >>> from aa_flax import Measure, Option, evaluate, register_measure
        >>> class Throughput(Measure):
        ...     options = (Option("throughput", "images a second"),)
        ...
        ...     def result(self, seen, subject):
        ...         return {"images_per_second": 1000.0}
        >>> register_measure(Throughput())  # `--throughput` of `aa_flax.eval`
    """
    if not getattr(measure, "options", ()):
        raise InputError(
            f"the measure {type(measure).__name__} has no options; add one with the measure's "
            "name, which is its flag"
        )
    others = [m for m in MEASURES.values() if m.name != measure.name]
    taken = {option.name: (m.name, option) for m in others for option in m.options}
    for option in measure.options:
        other, same = taken.get(option.name, ("", option))
        if same is not option:
            raise InputError(
                f"the measure {measure.name} has an option {option.name!r}, which {other} has "
                "already; give it another name"
            )
    MEASURES.register(measure.name, measure, replace=replace)


def columns() -> list[tuple[Column, tuple[str, ...]]]:
    """Returns every column of every measure, in order, and the path to its number."""
    return [(column, m.path(column)) for m in MEASURES.values() for column in m.columns]


def option_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the value of every measure's options, by name: as given, or the default."""
    known = {option.name: option for measure in MEASURES.values() for option in measure.options}
    for name in given:
        if name not in known:
            raise UnknownName(unknown("option", name, list(known)))
    return {name: option.value(given.get(name)) for name, option in known.items()}


def chosen_measures(names: Sequence[str], values: Mapping[str, Any]) -> list[Measure]:
    """Returns the measures with these names, and those whose first option has a value."""
    names = [names] if isinstance(names, str) else list(names)
    wanted = [MEASURES[name] for name in names]
    wanted += [m for m in MEASURES.values() if values[m.name] != m.options[0].default]
    used = {option.name for measure in wanted for option in measure.options}
    for measure in MEASURES.values():
        first, *others = measure.options
        if measure not in wanted:
            for option in others:
                if option.name not in used and values[option.name] != option.default:
                    raise InputError(f"--{option.name} belongs to --{first.name}; give that, too")
        elif first.kind is not bool and values[first.name] == first.default:
            raise InputError(f"the measure {measure.name} needs its option: {first.help}")
    return [measure for measure in MEASURES.values() if measure in wanted]


def measures_and_options(
    names: Sequence[str], options: Mapping[str, Any]
) -> tuple[list[Measure], dict[str, Any]]:
    """Returns the requested measures of `eval`, with accuracy, and the values of all options."""
    values = option_values(options)
    chosen = chosen_measures(names, values)
    if not chosen or not all(measure.brings_images for measure in chosen):
        always = [measure.name for measure in MEASURES.values() if measure.always]
        chosen = chosen_measures([*always, *names], values)
    return chosen, values
