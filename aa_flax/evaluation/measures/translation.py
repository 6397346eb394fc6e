"""How well a function to maps commutes with translations."""

from aa_flax.evaluation.dense import TranslationPSNR as Numbers
from aa_flax.evaluation.dense import psnr_of
from aa_flax.evaluation.measure import Column, Option, Result, Subject
from aa_flax.evaluation.measures.maps import MapsMeasure
from aa_flax.evaluation.moved import MovedFromCentre


class TranslationPSNR(MapsMeasure):
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

    def pairs(self, subject: Subject) -> MovedFromCentre:
        s, fractional = subject.settings, subject.options["fractional"]
        return MovedFromCentre(s.crop_size, s.crop_size // 8, fractional, False, s.passes, s.seed)

    def compared(self, subject: Subject, batches, views) -> Numbers:
        return psnr_of(subject.predictor, batches, views, subject.options["dynamic_range"])

    def settings(self, subject: Subject) -> Result:
        return super().settings(subject) | {"given_range": subject.options["dynamic_range"]}

    def line(self, result: Result) -> str:
        name = "EQ-T_frac" if result["fractional"] else "EQ-T"
        return (
            f"{name:12} {result['psnr']:6.2f} dB   (shifts of up to {result['max_shift']} pixels, "
            f"{result['passes']} passes, seed {result['seed']})"
        )
