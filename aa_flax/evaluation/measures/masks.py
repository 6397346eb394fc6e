"""How steady masks are under shifts."""

from aa_flax.evaluation.dense import check_maps, masks_of
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.moved import RandomPairs
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.views import check_size


class MaskConsistency(Measure):
    """Labels of the pixels that two crops at random offsets both see: how often they agree."""

    options = (Option("mask_consistency", "agreement of the masks of two shifted crops"),)
    columns = (
        Column(
            "masks",
            ("consistency",),
            note="agreement of two shifted crops' masks where both see, mean over the classes",
        ),
    )
    of_maps = True

    def settings(self, subject: Subject) -> Result:
        return vars(_views(subject))

    def check(self, subject: Subject) -> None:
        settings = subject.settings
        check_size(_views(subject), settings.image_size, settings.image_size)
        check_maps(subject.predictor, settings.crop_size, settings.batch_size)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        settings = subject.settings
        batches = settings.batches(subject.source, settings.image_size)
        return {**masks_of(subject.predictor, batches, _views(subject))}

    def line(self, result: Result) -> str:
        return (
            f"{'masks':12} consistency {result['consistency']:6.2f} %   agreement "
            f"{result['agreement']:6.2f} ± {result['agreement_ci95']:.2f} %   "
            f"({result['passes']} passes, seed {result['seed']})"
        )


def _views(subject: Subject) -> RandomPairs:
    s = subject.settings
    return RandomPairs(s.crop_size, s.shift_range, False, s.passes, s.seed)
