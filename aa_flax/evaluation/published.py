"""What was published for a net, beside what was measured."""

from collections.abc import Sequence
from math import erfc, sqrt
from pathlib import Path
from typing import Any, NamedTuple

from aa_flax.evaluation.rounding import p_value
from aa_flax.evaluation.row import Row
from aa_flax.models.registry import PublishedResult, published_results, released_weights

HEAD = ("net", "number", "measured", "published", "difference", "p")
EXPLAINED = (
    "`p`: the probability of so large a difference between two samples of images. (Both numbers "
    "are of the same images, so differences of a faithful port are smaller.)"
)


class Comparison(NamedTuple):
    """A measured and a published percentage.

    Attributes:
        difference: measured minus published.
        p_value: of so large a difference, or a larger one, between two samples of images.
    """

    measured: float
    published: float
    difference: float
    p_value: float


def published_for(results: dict[str, Any]) -> PublishedResult | None:
    """The published numbers of the released weights that were evaluated; None: of any others.

    They are of crops of 224 pixels.
    """
    weights, crop = results.get("weights") or "", (results.get("data") or {}).get("crop_size", 224)
    if isinstance(weights, str):  # as they once were described
        weights = {"file": weights.split(" (")[0]}
    stem = Path(weights.get("file", "")).stem
    released = next((r for r in released_weights() if Path(r.filename).stem == stem), None)
    if released is None or crop != 224:
        return None
    return next(
        (
            p
            for p in published_results()
            if (p.model, p.training) == (released.model, released.training)
        ),
        None,
    )


def compare(measured: float, published: float, standard_error: float) -> Comparison:
    """Judges a difference as if both numbers were of independent samples of images.

    They are of the same images, so a port that is right stays far within this.

    Args:
        measured, published: in percent. standard_error: of the measured number, in percent.
    """
    difference = measured - published
    spread = sqrt(2) * standard_error
    p_value = erfc(abs(difference) / spread / sqrt(2)) if spread else float(difference == 0)
    return Comparison(measured, published, difference, p_value)


def comparisons(results: dict[str, Any]) -> dict[str, Comparison]:
    """Top-1 accuracy and, if it was measured, consistency, beside what was published for them."""
    published = published_for(results)
    if published is None:
        return {}
    share = results["top1"] / 100
    error = 100 * sqrt(share * (1 - share) / results["num_images"])
    found = {"accuracy": compare(results["top1"], published.accuracy, error)}
    shift = results.get("shift", results)
    if "consistency" in shift:
        low, high = shift["consistency_interval"]
        error = (high - low) / 2 / 1.96
        found["consistency"] = compare(shift["consistency"], published.consistency, error)
    return found


def compared_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """What stands under `HEAD`, a row a number, for results of released weights."""
    return [
        (
            row.title,
            name,
            f"{c.measured:.2f}",
            f"{c.published:.2f}",
            f"{c.difference:+.2f}",
            p_value(c.p_value),
        )
        for row in rows
        for results in row.results
        for name, c in comparisons(results).items()
    ]
