"""How well a function to maps commutes with translations."""

from aa_flax.evaluation.dense import check_maps, psnr_of
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.moved import MovedFromCentre
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.views import check_size


class TranslationPSNR(Measure):
    """EQ-T of StyleGAN3 for functions of images, in decibels; see `evaluation.dense`."""

    options = (
        Option("translation_psnr", "PSNR of translation equivariance, in decibels"),
        Option("fractional", "shifts of fractions of a pixel, too: EQ-T_frac"),
        Option("dynamic_range", "of the maps; default: as found", None, float),
    )
    columns = (
        Column(
            "EQ-T",
            ("psnr",),
            unit="dB",
            note="PSNR of translation equivariance, in decibels (Karras et al. 2021, Eq. 3)",
        ),
    )
    of_maps = True

    def settings(self, subject: Subject) -> Result:
        return vars(_views(subject)) | {"given_range": subject.options["dynamic_range"]}

    def check(self, subject: Subject) -> None:
        settings = subject.settings
        check_size(_views(subject), settings.image_size, settings.image_size)
        check_maps(subject.predictor, settings.crop_size, settings.batch_size)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        settings = subject.settings
        batches = settings.batches(subject.source, settings.image_size)
        dynamic_range = subject.options["dynamic_range"]
        return {**psnr_of(subject.predictor, batches, _views(subject), dynamic_range)}

    def line(self, result: Result) -> str:
        name = "EQ-T_frac" if result["fractional"] else "EQ-T"
        return (
            f"{name:12} {result['psnr']:6.2f} dB   (shifts of up to {result['max_shift']} pixels, "
            f"{result['passes']} passes, seed {result['seed']})"
        )


def _views(subject: Subject) -> MovedFromCentre:
    s, fractional = subject.settings, subject.options["fractional"]
    return MovedFromCentre(s.crop_size, s.crop_size // 8, fractional, False, s.passes, s.seed)
