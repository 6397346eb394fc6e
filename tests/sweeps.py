"""Sweeps of which a part is slow."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Returns values for `parametrize`; all but the quick ones are marked slow."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]
