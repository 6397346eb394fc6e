"""The measures, one a file, in the order of the summary and the report."""

from aa_flax.evaluation.measure import MEASURES, Column, Measure, Option, register_measure
from aa_flax.evaluation.measures.accuracy import Accuracy
from aa_flax.evaluation.measures.circular import Circular
from aa_flax.evaluation.measures.clip import Clip
from aa_flax.evaluation.measures.corruptions import Corruptions
from aa_flax.evaluation.measures.diagonal import Diagonal
from aa_flax.evaluation.measures.equivariance import Equivariance
from aa_flax.evaluation.measures.images import Images
from aa_flax.evaluation.measures.jitter import Jitter
from aa_flax.evaluation.measures.masks import MaskConsistency
from aa_flax.evaluation.measures.per_class import PerClass
from aa_flax.evaluation.measures.perturbations import Perturbations
from aa_flax.evaluation.measures.predictions import Predictions
from aa_flax.evaluation.measures.shift import Shift
from aa_flax.evaluation.measures.subpixel import Subpixel
from aa_flax.evaluation.measures.tiles import Tiles
from aa_flax.evaluation.measures.time import Time
from aa_flax.evaluation.measures.translation import TranslationPSNR
from aa_flax.evaluation.measures.worst_case import WorstCase

__all__ = ["MEASURES", "Column", "Measure", "Option", "register_measure"]

for _measure in (
    Accuracy(),
    PerClass(),
    Predictions(),
    Shift(),
    WorstCase(),
    Circular(),
    Subpixel(),
    Jitter(),
    Diagonal(),
    Equivariance(),
    Corruptions(),
    Perturbations(),
    MaskConsistency(),
    TranslationPSNR(),
    Images(),
    Clip(),
    Tiles(),
    Time(),
):
    register_measure(_measure)
