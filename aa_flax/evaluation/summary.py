"""What a person reads of results: a few lines."""

from collections.abc import Mapping
from typing import Any

from aa_flax.evaluation.measure import Result
from aa_flax.evaluation.measures import MEASURES
from aa_flax.weights.locate import describe


def summary(results: Mapping[str, Any]) -> str:
    """Every number that was measured, in words."""
    lines = [f"{results['model']}, {results['num_images']} images{weights_of(results)}"]
    for measure in MEASURES.values():
        found: Result | None = measure.found_in(results)
        line = None if found is None else measure.line(found)
        lines += [] if line is None else [f"  {line}"]
    return "\n".join(lines)


def weights_of(results: Mapping[str, Any]) -> str:
    """`, weights: ...`, as far as it is known."""
    weights = results.get("weights")
    if not weights:
        return ""
    return f", weights: {weights if isinstance(weights, str) else describe(weights)}"
