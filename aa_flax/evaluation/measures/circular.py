"""Consistency of rolled images."""

from aa_flax.evaluation.measure import Option, Subject
from aa_flax.evaluation.measures.pairs import PairMeasure, random_pairs
from aa_flax.evaluation.views import RolledPairs


class Circular(PairMeasure):
    """What leaves the crop on one side enters on the other: no new content."""

    title = "rolled"
    note = "consistency of crops rolled by two random shifts: no new content comes in"
    options = (Option("circular", "consistency of rolled images"),)

    def views(self, subject: Subject) -> RolledPairs:
        settings = subject.settings
        return RolledPairs(settings.crop_size, settings.shift_range, **random_pairs(settings))
