"""Numbers as texts: never more digits than are known, and never fewer."""

import pytest

from aa_flax.evaluation.rounding import p_value, with_spread


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([], "%", ""),
        ([76.13], "%", "76.13"),
        ([76.1, 76.16], "%", "76.130 ± 0.042"),
        ([70, 72], "%", "71.0 ± 1.4"),
        ([50, 80], "%", "65 ± 21"),
        ([70, 70], "%", "70.00 ± 0.00"),
        ([0.01234], "ms", "0.0123"),
        ([5], "ms", "5.000"),
        ([1234.56], "ms", "1235"),
        ([1200, 1300], "ms", "1250 ± 71"),
    ],
)
def test_a_mean_has_the_decimals_of_its_deviation(values, unit, text):
    assert with_spread(values, unit) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "< 0.01"), (0.00999, "< 0.01"), (0.01, "0.01"), (0.257, "0.26")]
)
def test_a_small_p_is_told_as_a_bound(p, text):
    assert p_value(p) == text
