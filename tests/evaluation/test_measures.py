"""A user's measure: its option, line, column and figures; and invalid ones."""

import json

import numpy as np
import pytest

from aa_flax import InputError, report
from aa_flax.evaluation.by_config import evaluate_config
from aa_flax.evaluation.measure import MEASURES, Column, Measure, Option
from aa_flax.evaluation.measures import register_measure
from aa_flax.evaluation.views import Center
from tests.evaluation.tiny import Flat, Noise, noise_config


class Confidence(Measure):
    options = (
        Option("confidence", "the mean probability of the likeliest class"),
        Option("power", "of the probability", 1.0, float),
    )
    columns = (Column("confidence", ("mean",)),)

    def settings(self, subject):
        return {"power": subject.options["power"]}

    def views(self, subject):
        return Center(subject.settings.crop_size)

    def result(self, seen, subject):
        highest = np.exp(np.maximum(seen.log_probability, seen.log_other))
        return {"mean": 100 * (highest ** subject.options["power"]).mean()}

    def line(self, result):
        return f"confidence of {result['mean']:.2f} %"


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(MEASURES, "_items", dict(MEASURES))
    register_measure(Confidence())


def run(output, **options):
    return evaluate_config(
        Flat(), noise_config(), weights={}, output=output, options=options, source=Noise()
    )


@pytest.mark.usefixtures("registered")
def test_a_measure_has_its_result_settings_line_and_column(tmp_path, capsys):
    found = run(tmp_path / "results.json", confidence=True, power=2)
    assert 0 < found["confidence"]["mean"] < 100
    assert found["confidence"]["power"] == 2.0
    assert f"  confidence of {found['confidence']['mean']:.2f} %" in capsys.readouterr().out
    table = report.table(report.gather([tmp_path]).rows)
    assert "| model | accuracy | confidence |" in table
    assert f"{found['confidence']['mean']:.2f}" in table


@pytest.mark.usefixtures("registered")
def test_a_measures_settings_are_compared(tmp_path):
    for power in (1.0, 2.0, 1.0):
        run(tmp_path / "results.json", confidence=True, power=power)
    powers = [
        json.loads((tmp_path / name).read_text())["confidence"]["power"]
        for name in ("results.json", "results_2.json")
    ]
    assert powers == [1.0, 2.0]
    assert not (tmp_path / "results_3.json").exists()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"mean": float("nan")}, "confidence found nan, which is not finite"),
        ({"of": [{"mean": np.float64("inf")}]}, "confidence found inf"),
        ({"mean": np.full(2, np.nan)}, "confidence found nan"),
        ({"mean": object()}, "confidence returned what cannot be written as JSON"),
    ],
)
def test_a_result_that_is_not_finite_is_refused(tmp_path, monkeypatch, result, message):
    monkeypatch.setattr(Confidence, "result", lambda *_: result)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "results.json", confidence=True)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.usefixtures("registered")
def test_names_are_taken_once():
    class Another(Confidence):
        pass

    class Borrower(Confidence):
        options = (Option("mine", "a measure"), Option("power", "of another measure"))

    class Nameless(Measure):
        pass

    with pytest.raises(InputError, match="there is a measure 'confidence' already"):
        register_measure(Another())
    with pytest.raises(InputError, match="mine has an option 'power', which confidence has"):
        register_measure(Borrower())
    with pytest.raises(InputError, match="the measure Nameless has no options"):
        register_measure(Nameless())  # pyright: ignore[reportArgumentType]


def test_every_measure_has_a_help_text_and_separate_options():
    options = {option for measure in MEASURES.values() for option in measure.options}
    names = [option.name for option in options]  # measures may share one
    assert len(set(names)) == len(names)
    assert all(option.help for measure in MEASURES.values() for option in measure.options)
    assert {"shift", "per_batch", "diagonal", "image_indices", "flip_rates", "time"} <= set(names)
