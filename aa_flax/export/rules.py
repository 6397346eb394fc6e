"""The table of rules: what each primitive of JAX becomes, one function a primitive.

A rule gets the graph, the shape of the result, the primitive's parameters and the values that it
reads, and returns the result.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aa_flax.export.graph import Graph
from aa_flax.export.values import Value, stored, written

Params = Mapping[str, Any]
Rule = Callable[..., Value]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of these primitives."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def input_of(value: Value, graph: Graph) -> str | np.ndarray:
    """What a node reads: an array by name, or a constant."""
    return stored(value) if isinstance(value, np.ndarray) else written(value, graph).name
