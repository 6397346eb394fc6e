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
