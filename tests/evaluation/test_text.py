"""Numbers as text have their significant digits, no more and no fewer."""

import pytest

from aa_flax.evaluation.text import p_value, with_interval, with_spread


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
    ("value", "interval", "unit", "text"),
    [
        (88.2, (86.4, 89.7), "%", "88.2 % (86.4 to 89.7)"),
        (100.0, (99.15, 100.0), "%", "100.00 % (99.15 to 100.00)"),
        (1234.5, (1200.0, 1300.0), "", "1234 (1200 to 1300)"),
    ],
)
def test_an_interval_is_given_by_its_ends(value, interval, unit, text):
    assert with_interval(value, interval, unit) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "< 0.01"), (0.00999, "< 0.01"), (0.01, "0.01"), (0.257, "0.26")]
)
def test_a_small_p_is_given_as_a_bound(p, text):
    assert p_value(p) == text
