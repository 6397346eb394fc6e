"""Consistency under shifts of less than a pixel."""

from aa_flax.evaluation.measure import Option, Subject
from aa_flax.evaluation.measures.pairs import PairMeasure, random_pairs
from aa_flax.evaluation.views import SubpixelPairs


class Subpixel(PairMeasure):
    """Images moved by fractions of a pixel, band-limited."""

    title = "sub-pixel"
    note = "consistency of images moved by two random fractions of a pixel"
    options = (Option("subpixel", "consistency under shifts of less than a pixel"),)

    def views(self, subject: Subject) -> SubpixelPairs:
        return SubpixelPairs(subject.settings.crop_size, **random_pairs(subject.settings))
