"""What a person reads of results: a few lines."""

from collections.abc import Mapping
from typing import Any

from aa_flax.evaluation.measure import Result
from aa_flax.evaluation.measures import MEASURES
from aa_flax.weights.locate import describe


def summary(results: Mapping[str, Any]) -> str:
    """Every number that was measured, in words."""
    weights = results.get("weights")
    of = f", weights: {describe(weights)}" if weights else ""
    count = f", {results['num_images']} images" if results["num_images"] else ""
    lines = [f"{results['model']}{count}{of}"]
    for measure in MEASURES.values():
        found: Result | None = measure.found_in(results)
        line = None if found is None else measure.line(found)
        lines += [] if line is None else [f"  {line}"]
    return "\n".join(lines)
