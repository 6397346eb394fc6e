"""How steady masks are under shifts."""

from aa_flax.evaluation.dense import MaskConsistency as Numbers
from aa_flax.evaluation.dense import masks_of
from aa_flax.evaluation.measure import Column, Option, Result, Subject
from aa_flax.evaluation.measures.maps import MapsMeasure
from aa_flax.evaluation.moved import RandomPairs
from aa_flax.evaluation.text import with_interval


class MaskConsistency(MapsMeasure):
    """Labels of the pixels that two crops at random offsets both see: how often they agree."""

    options = (Option("mask_consistency", "agreement of the masks of two shifted crops"),)
    columns = (
        Column(
            "masks",
            ("consistency",),
            note="agreement of two shifted crops' masks where both see, mean over the classes",
        ),
    )

    def pairs(self, subject: Subject) -> RandomPairs:
        s = subject.settings
        return RandomPairs(s.crop_size, s.shift_range, False, s.passes, s.seed)

    def compared(self, subject: Subject, batches, views) -> Numbers:
        return masks_of(subject.predictor, batches, views)

    def line(self, result: Result) -> str:
        return (
            f"{'masks':12} consistency {result['consistency']:6.2f} %   agreement "
            f"{with_interval(result['agreement'], result['agreement_interval'])}   "
            f"({result['passes']} passes, seed {result['seed']})"
        )
