"""The measures, one subject a file, registered in the order of the summary and the report."""

from aa_flax.evaluation.measure import MEASURES, Column, Measure, Option, register_measure
from aa_flax.evaluation.measures.accuracy import Accuracy, PerClass, Predictions
from aa_flax.evaluation.measures.aliasing import Aliasing
from aa_flax.evaluation.measures.clip import Clip
from aa_flax.evaluation.measures.clip_maps import MapFlicker, MaskFlicker, PointFlicker
from aa_flax.evaluation.measures.consistency import Circular, Jitter, Shift, Subpixel, WorstCase
from aa_flax.evaluation.measures.corruptions import Corruptions
from aa_flax.evaluation.measures.diagonal import Diagonal
from aa_flax.evaluation.measures.drift import Drift
from aa_flax.evaluation.measures.equivariance import Equivariance
from aa_flax.evaluation.measures.images import Images
from aa_flax.evaluation.measures.lie import LocalEquivarianceError
from aa_flax.evaluation.measures.maps import MaskConsistency, TranslationPSNR
from aa_flax.evaluation.measures.perturbations import Perturbations
from aa_flax.evaluation.measures.points import PointJitter
from aa_flax.evaluation.measures.realistic import Realistic, WorstRealistic
from aa_flax.evaluation.measures.stability import Stability
from aa_flax.evaluation.measures.tiles import Tiles
from aa_flax.evaluation.measures.time import Time
from aa_flax.evaluation.measures.worst_curve import WorstCircular, WorstWithin

__all__ = ["MEASURES", "Column", "Measure", "Option", "register_measure"]

for _kind in (
    *(Accuracy, PerClass, Predictions, Shift, WorstCase, Circular, Subpixel, Jitter),
    *(WorstWithin, WorstCircular, Stability, Realistic, WorstRealistic),
    *(Diagonal, Equivariance, Aliasing, Corruptions, Perturbations),
    *(LocalEquivarianceError, MaskConsistency, TranslationPSNR, PointJitter),
    *(Images, Drift, Clip, MaskFlicker, MapFlicker, PointFlicker, Tiles, Time),
):
    register_measure(_kind())
