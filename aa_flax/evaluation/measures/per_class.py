"""Accuracy of each class."""

from aa_flax.evaluation.accuracy import accuracy_per_class
from aa_flax.evaluation.measure import Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.views import Center


class PerClass(Measure):
    """For each class its number of images, top-1 and top-5."""

    options = (Option("per_class", "accuracy of each class"),)

    def settings(self, subject: Subject) -> Result:
        return {}

    def views(self, subject: Subject) -> Center:
        return Center(subject.settings.crop_size)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert seen is not None
        seen.check_finite()
        return accuracy_per_class(seen, subject.source.class_names)

    def line(self, result: Result) -> str:
        top1 = {name: found["top1"] for name, found in result.items() if isinstance(found, dict)}
        worst, best = min(top1, key=top1.__getitem__), max(top1, key=top1.__getitem__)
        return (
            f"{'each class':12} top-1 from {top1[worst]:.2f} % ({worst}) "
            f"to {top1[best]:.2f} % ({best})"
        )
