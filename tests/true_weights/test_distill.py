"""The benchmark of distillation with true weights: its measures, and a short run."""

import numpy as np
import pytest

from aa_flax import InputError
from benchmarks import distill_true
from benchmarks.distill_true import OF_CLASSES, OF_MAPS, SHIFTS, of_classes, of_maps


def outputs(rng, *shape):
    """Returns outputs for two crops each of four photographs: unshifted, and two at every shift."""
    return {d: rng.standard_normal((4, 2, 2 if d else 1, *shape)) for d in (0, *SHIFTS)}


def test_answers_are_compared_with_the_plain_models_and_with_those_of_shifted_crops(rng):
    same, plain = (dict.fromkeys((0, *SHIFTS), x) for x in rng.standard_normal((2, 4, 2, 1, 3)))
    p, q = (np.exp(x[0]) / np.exp(x[0]).sum(-1, keepdims=True) for x in (plain, same))
    found = dict(zip(OF_CLASSES, of_classes(same, plain, q[:, 0, 0].argmax(-1)), strict=True))
    assert found["100 KL"] == pytest.approx(100 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-5)
    assert found["agreement"] == 100 * (p.argmax(-1) == q.argmax(-1)).mean()
    assert found["top-1"] >= 50  # the first crops give the labels
    assert (found["consistency"], found["change"]) == (100, 0)


def test_all_measures_of_classes_but_those_of_shifts_are_perfect_for_the_plain_model(rng):
    plain = outputs(rng, 5)
    agreement, divergence, _, consistency, change = of_classes(plain, plain, np.zeros(4))
    assert (agreement, divergence) == (100, 0)
    assert consistency < 100
    assert change > 0


def test_maps_are_compared_by_relative_squares_and_pooled_over_pixels(rng):
    plain = outputs(rng, 12)
    twice = {d: 2 * x for d, x in plain.items()}
    found, same = (np.array(list(of_maps(x, plain, channels=3))) for x in (twice, plain))
    assert len(found) == len(OF_MAPS)
    assert found[0] == 100
    assert same[0] == 0
    np.testing.assert_allclose(found[1:], same[1:])  # have no scale


@pytest.mark.true_weights
def test_a_trunk_learns_maps_of_photographs_that_it_has_not_seen(tmp_path, monkeypatch):
    try:
        plain = distill_true.Pooled(distill_true.our_trunk("alexnet"))
        distill_true.opened(None)
    except InputError as reason:
        pytest.skip(str(reason))
    monkeypatch.setitem(distill_true.SETTINGS, "alexnet", (8, 1e-4, 96))
    monkeypatch.setattr(distill_true, "SHIFTS", (1,))
    results = distill_true.Results(tmp_path / "results.json")
    part = distill_true.measure("alexnet", plain, 1, results)
    distance = {row: found["held out"][0] for row, found in results.found[part].items()}
    assert distance["plain model, 0"] == 0
    assert distance["distilled, 0"] < 0.9 * distance["copied, 0"]
