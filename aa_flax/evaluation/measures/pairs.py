"""What measures of pairs of views have in common: the numbers, and their line."""

from typing import Any, ClassVar

from aa_flax.evaluation.consistency import consistency
from aa_flax.evaluation.measure import Column, Measure, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.settings import Settings
from aa_flax.evaluation.text import with_interval


class PairMeasure(Measure):
    """Consistency of pairs of views of an image.

    Attributes:
        title: what was done to the images, for the summary and the report's column.
        note: what the report says of the column.
    """

    title: ClassVar[str]
    note: ClassVar[str] = ""

    def __init_subclass__(cls):
        if not cls.columns:
            cls.columns = (
                Column(cls.title, ("consistency",), note=cls.note, interval="consistency_interval"),
            )

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        return {**consistency(seen)}

    def line(self, result: Result) -> str:
        how = [f"{result[key]} passes" for key in ("passes",) if key in result]
        how += [f"seed {result['seed']}"] if "seed" in result else []
        return (
            f"{self.title:12} top-1 {result['top1_shifted']:6.2f} %   consistency "
            f"{with_interval(result['consistency'], result['consistency_interval'])}   "
            f"consistent and correct {result['consistent_and_correct']:6.2f} %   "
            f"change of P {result['probability_change']:.2f} %   ({', '.join(how)})"
        )


def random_pairs(settings: Settings) -> dict[str, Any]:
    """The arguments that all views of random pairs take."""
    return {"passes": settings.passes, "seed": settings.seed}
