"""What a measure is: one record with its flags, what the net is shown, and what is reported."""

import math
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

Result = dict[str, Any]  # what a measure found, as it stands in the results: JSON values


@dataclass(frozen=True)
class Option:
    """A flag of `python -m aa_flax.eval`, and an argument of `aa_flax.evaluate`.

    Attributes:
        name: without dashes. The first option of a measure has the measure's name and asks for it:
            a bool, or a value such as a folder.
        help: one line, as `--help` shows it.
        default: its value where it is not given.
        kind: `bool`, `int`, `float`, `str`, `Path`, or `tuple` (of whole numbers: `0,5,9`).
        written: it is a file that the measure writes; of several nets each gets one of its own.
    """

    name: str
    help: str
    default: Any = False
    kind: type = bool
    written: bool = False

    def value(self, given: Any) -> Any:
        """What was given, as the measure gets it: a `Path` with `~` expanded, a tuple of numbers.

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
            return _numbers(self.name, given)
        if self.kind is float and type(given) is int:
            return float(given)
        if type(given) is not self.kind:
            raise InputError(
                f"the option {self.name} takes a {self.kind.__name__}, got {given!r}: {self.help}"
            )
        return given

    def value_for(self, model: str, value: Any) -> Any:
        """The value where several nets are evaluated: `p_resnet18.npz` for `p.npz`."""
        if not self.written or value is None:
            return value
        return value.with_name(f"{value.stem}_{model}{value.suffix}")


def _numbers(name: str, given: Any) -> tuple[int, ...]:
    parts = given.split(",") if isinstance(given, str) else given
    parts = list(parts) if isinstance(parts, Iterable) else [parts]
    if not parts or not all(str(part).isdecimal() for part in parts):
        shown = ",".join(str(part) for part in parts)
        raise InputError(f"--{name} are numbers such as 0,5,9; got {shown}")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class Column:
    """A column of the report.

    Attributes:
        title: its head.
        key: where its number stands in the measure's result, e.g. `("consistency",)`.
        unit: of the number: `%`, `ms`, or "".
        judged: whether more of it makes a net better, for the report's Pareto front.
        note: what the report says of it.
        interval: key, in the same mapping, of the two ends of its interval; empty: it has none.
    """

    title: str
    key: tuple[str, ...]
    unit: str = "%"
    judged: bool = False
    note: str = ""
    interval: str = ""


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and how: all that a measure may look at.

    Attributes:
        name: of the net, for titles.
        predictor: calls the net; `predictor.logits(images)` gives the logits of images
            `(N, H, W, 3)` with values in 0..255.
        model: the net itself, where it is one of this package; None for a plain function. Where a
            measure checks, it may be of shapes alone.
        source: the labelled images. settings: how they are cropped and shifted.
        output: the results file; what else a measure writes goes beside it. None: nothing is kept.
        options: the values of all measures' options, by name.
    """

    name: str
    predictor: Predictor
    model: Any
    source: Source
    settings: Settings
    mesh: Mesh
    output: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Measure:
    """One way to judge a net. An instance of a subclass is given to `register_measure`.

    Attributes:
        options: its flags; the first has the measure's name and asks for it. The results keep the
            measure's numbers under that name.
        columns: of the report, in order.
        needs_model: whether it looks into a net of this package, not only at its outputs.
        always: whether `aa_flax.eval` measures it without being asked; it has no flag then.
        of_maps: whether it is of functions to maps, not logits: for `aa_flax.evaluate`, apart from
            measures of logits; `aa_flax.eval`, whose nets give logits, has no flag for it.
        brings_images: whether it looks at images of its own, which need no labels, and never at the
            subject's source. Where all that is asked for does, no data is opened and nothing that
            is always measured is: the source is a `NoSource`.
    """

    options: ClassVar[tuple[Option, ...]]
    columns: ClassVar[tuple[Column, ...]] = ()
    needs_model: ClassVar[bool] = False
    always: ClassVar[bool] = False
    of_maps: ClassVar[bool] = False
    brings_images: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.options[0].name

    def settings(self, subject: Subject) -> Result:
        """All that the numbers depend on beside net, weights, data and crops: stored with them.

        Results with other settings are of another measurement and are not overwritten. Without a
        method of its own: the fields of its views.
        """
        views = self.views(subject)
        return {} if views is None else dict(vars(views))

    def check(self, subject: Subject) -> None:
        """Raises an InputError for what cannot be measured, before anything is."""

    def views(self, subject: Subject) -> Views | None:
        """What the net is shown of every image; None: the measure looks for itself."""
        return None

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        """The numbers, of what the net said of the views. Its settings are added to them."""
        raise NotImplementedError

    def line(self, result: Result) -> str | None:
        """A line of the summary, without its indentation; None: nothing to say."""
        return None

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        """Draws nets beside one another into a folder, for the report; returns the files.

        Args:
            rows: the report's; those without this measure are among them.
        """
        return []

    def section(self, rows: Sequence[Row]) -> str:
        """What the report says of nets beside one another, as Markdown; empty: nothing.

        Args:
            rows: the report's; those without this measure are among them.
        """
        return ""

    def path(self, column: Column) -> tuple[str, ...]:
        """Where a column's number stands in the results."""
        return (self.name, *column.key)

    def found_in(self, results: Mapping[str, Any]) -> Result | None:
        """The measure's numbers in the results of a net, if they are there."""
        found = results.get(self.name)
        return found if isinstance(found, dict) else None

    def stored(self, result: Result) -> Result:
        """How the numbers stand in the results."""
        return {self.name: result}


MEASURES: Table[Measure] = Table("measure")


def register_measure(measure: Measure, *, replace: bool = False) -> None:
    """Adds a measure: its flags of `aa_flax.eval`, line of the summary, columns of the report.

    Measures share an option where it is the same `Option` of both.

    Raises:
        InputError: another measure has its name or an option of that name.
    """
    if not getattr(measure, "options", ()):
        raise InputError(
            f"the measure {type(measure).__name__} has no options; the first is its flag, and has "
            "its name"
        )
    others = [m for m in MEASURES.values() if m.name != measure.name]
    taken = {option.name: (m.name, option) for m in others for option in m.options}
    for option in measure.options:
        other, same = taken.get(option.name, ("", option))
        if same is not option:
            raise InputError(
                f"the measure {measure.name} has an option {option.name!r}, as {other} has; give "
                "it another name"
            )
    MEASURES.register(measure.name, measure, replace=replace)


def columns() -> list[tuple[Column, tuple[str, ...]]]:
    """Every column of every measure, in order, and where its number stands in the results."""
    return [(column, m.path(column)) for m in MEASURES.values() for column in m.columns]


def option_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every measure's options, by name: what is given, or the default.

    Raises:
        InputError: an option that no measure has, or a value of another kind.
    """
    known = {option.name: option for measure in MEASURES.values() for option in measure.options}
    for name in given:
        if name not in known:
            raise UnknownName(unknown("option", name, list(known)))
    return {name: option.value(given.get(name)) for name, option in known.items()}


def chosen_measures(names: Sequence[str], values: Mapping[str, Any]) -> list[Measure]:
    """The measures with these names, and those whose first option has a value.

    Args:
        names: a text is taken for one name.
        values: of `option_values`.

    Raises:
        InputError: an unknown measure, one whose folder or file is not given, or an option of a
            measure that is not among them.
    """
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


def need_no_source(measures: Sequence[Measure]) -> bool:
    """Whether there are measures, and each brings images of its own."""
    return bool(measures) and all(measure.brings_images for measure in measures)


def check_numbers(measure: Measure, result: Any) -> None:
    """Raises an InputError if a number is not finite: it could not be told from a right one."""
    if isinstance(result, Mapping):
        for value in result.values():
            check_numbers(measure, value)
    elif isinstance(result, list | tuple):
        for value in result:
            check_numbers(measure, value)
    elif isinstance(result, float) and not math.isfinite(result):
        raise InputError(
            f"the measure {measure.name} found {result}, which is no finite number; the weights "
            "are broken, or their training diverged"
        )
