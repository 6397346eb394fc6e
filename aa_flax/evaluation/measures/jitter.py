"""Consistency of random crops of random size."""

from aa_flax.evaluation.measure import Option, Subject
from aa_flax.evaluation.measures.pairs import PairMeasure, random_pairs
from aa_flax.evaluation.views import JitteredPairs

SCALE = 0.1  # of the crop size, by which the squares are smaller or larger


class Jitter(PairMeasure):
    """Squares of 0.9 to 1.1 crop sizes from anywhere in the image, resized to the crop."""

    title = "jittered"
    note = "consistency of two random squares, 0.9 to 1.1 crops wide, resized to the crop"
    options = (Option("jitter", "consistency of random crops, resized"),)

    def views(self, subject: Subject) -> JitteredPairs:
        settings = subject.settings
        return JitteredPairs(settings.crop_size, SCALE, **random_pairs(settings))
