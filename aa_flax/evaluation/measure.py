"""What a measure is: one record with its flags, what the net is shown, and what is reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jax.sharding import Mesh

from aa_flax.config import Config
from aa_flax.data.sources import Source
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.views import Views
from aa_flax.tables import Table

Result = dict[str, Any]  # what a measure found, as it stands in the results: JSON values


@dataclass(frozen=True)
class Option:
    """A flag of `eval.py`, and an argument of `aa_flax.evaluate`.

    Attributes:
        name: without dashes. The first option of a measure has the measure's name and asks for it:
            a bool, or a value such as a folder.
        default: its value where it is not given. The flag's type is that of `kind`.
        help: one line, as `--help` shows it.
        kind: `bool`, `int`, `float`, `str`, `Path`, or `list` (of texts, separated by commas).
    """

    name: str
    help: str
    default: Any = False
    kind: type = bool


@dataclass(frozen=True)
class Column:
    """A column of the report.

    Attributes:
        title: its head.
        key: where its number stands in the measure's result, e.g. `("consistency",)`.
        unit: of the number: `%`, `ms`, or "".
    """

    title: str
    key: tuple[str, ...]
    unit: str = "%"


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and how: all that a measure may look at.

    Attributes:
        name: of the net, for titles.
        predict: the compiled function from uint8-valued float images `(N, H, W, 3)` in 0..255 to
            float32 logits. model: the net itself; None where a plain function is evaluated.
        source: the labelled images. config: with `data` and `eval`.
        options: the values of the measure's own options, by name.
        output: the results file; what else a measure writes goes beside it.
    """

    name: str
    predict: Any
    model: Any
    source: Source
    config: Config
    mesh: Mesh
    output: Path | None
    options: Mapping[str, Any] = field(default_factory=dict)


class Measure:
    """One way to judge a net. A subclass is registered with `aa_flax.register_measure`.

    Attributes:
        options: its flags; the first has the measure's name and asks for it. The results keep the
            measure's figures under that name.
        columns: of the report, in order.
        needs_model: whether it looks into a net of this package, not only at its outputs.
    """

    options: ClassVar[tuple[Option, ...]]
    columns: ClassVar[tuple[Column, ...]] = ()
    needs_model: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.options[0].name

    def settings(self, subject: Subject) -> Result:
        """All that the figures depend on beside net, weights and data: stored, and compared."""
        return {}

    def check(self, subject: Subject) -> None:
        """Raises an InputError for what cannot be measured, before anything is."""

    def views(self, subject: Subject) -> Views | None:
        """What the net is shown of every image; None: the measure looks for itself."""
        return None

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        """The figures, of what the net said of the views."""
        raise NotImplementedError

    def line(self, result: Result) -> str | None:
        """A line of the summary, without its indentation; None: nothing to say."""
        return None

    def figure(self, path: Path, results: Mapping[str, tuple[Result, Path]]) -> bool:
        """Draws nets beside one another into `path`, for the report; False: there is no figure.

        Args:
            results: by net, the measure's result and the folder that its files are in.
        """
        return False


MEASURES: Table[Measure] = Table("measure")


def register_measure(measure: Measure, *, replace: bool = False) -> None:
    """Adds a measure: its flags to `eval.py`, its line to the summary, its columns to the report.

    Raises:
        InputError: another measure has its name.
    """
    MEASURES.register(measure.name, measure, replace=replace)


def columns() -> Sequence[tuple[Measure, Column]]:
    """Every column of every measure, in order."""
    return [(measure, column) for measure in MEASURES.values() for column in measure.columns]
