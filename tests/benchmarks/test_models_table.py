import pytest

from benchmarks.models_table import (
    Ratio,
    append,
    geometric_mean,
    groups,
    overheads,
    ratio,
    read,
    report,
)


def row(framework, variant, rounds, model="resnet18_lpf4", started="1", **more):
    common = {
        "model": model,
        "mode": "forward",
        "batch": "8",
        "size": "224",
        "precision": "float32",
    }
    place = {"started": started, "device": "a CPU", "versions": f"{framework} 1"}
    facts = {"compile_s": "1", "peak_mib": "100", "alternating": "yes", "error": ""}
    mine = {"framework": framework, "variant": variant, "rounds_ms": rounds}
    return {**place, **common, **mine, **facts, **more}


ROWS = [
    row("aa_flax", "default", "10;20;10"),
    row("torch", "eager", "40;40;40"),
    row("torch", "eager_channels_last", "20;20;30"),
    row("torch", "compile", "", error="no compiler"),
]


def test_a_ratio_is_that_of_neighbouring_rounds_with_its_spread():
    assert ratio([20, 20, 30], [10, 20, 10]) == Ratio(2, 1, 3)
    assert ratio([20, 20], [10, 20, 10]) == Ratio(1.5, 1, 2)
    assert str(Ratio(2, 1, 3)) == "2.00 (1.00 to 3.00)"


def test_the_geometric_mean_of_a_number_and_its_inverse_is_one():
    assert geometric_mean([4, 0.25]) == pytest.approx(1)


def test_the_best_variant_of_torch_is_used_without_failed_ones():
    (group,) = groups(ROWS)
    assert group.ratio() == Ratio(2, 1, 3)
    assert ("torch", "compile") in group.has_run
    assert "| 10.0 | 20.0 | eager channels_last | 2.00 (1.00 to 3.00) |" in report(ROWS)


def test_a_setting_measured_again_counts_once():
    again = [one | {"started": "2", "rounds_ms": "5"} for one in ROWS[:2]]
    assert [g.ratio() for g in groups([*ROWS, *again])] == [Ratio(2, 1, 3)]
    again = [one | {"started": "2", "rounds_ms": "5"} for one in ROWS]
    assert [g.ratio() for g in groups([*ROWS, *again])] == [Ratio(1, 1, 1)]


def test_other_versions_are_another_comparison():
    newer = [one | {"started": "2", "versions": "2"} for one in ROWS]
    assert len(groups([*ROWS, *newer])) == 2


def test_antialiased_models_and_their_baselines_have_separate_means():
    plain = [one | {"model": "resnet18", "rounds_ms": "10"} for one in ROWS[:2]]
    lines = report([*ROWS, *plain])
    assert "| forward | 8 | float32 | antialiased | 1 | 2.00 | 2.00 (resnet18_lpf4) |" in lines
    assert "| forward | 8 | float32 | baseline | 1 | 1.00 | 1.00 (resnet18) |" in lines


def test_overhead_is_that_over_the_models_baseline():
    plain = [
        row("aa_flax", "default", "5;10;10", model="resnet18", started="2"),
        row("torch", "eager", "10;10;10", model="resnet18", started="2"),
    ]
    assert overheads(groups(ROWS)) == ""
    assert "| 2.00 (1.00 to 2.00) | 2.00 (2.00 to 3.00) |" in overheads(groups([*ROWS, *plain]))


def test_rows_are_added_to_a_file_and_one_cut_short_is_left_out(tmp_path):
    path = tmp_path / "folder/results.csv"
    assert read(path) == []
    append(path, ROWS[:2])
    append(path, ROWS[2:])
    assert read(path) == ROWS
    path.write_text(path.read_text()[:-30])
    assert read(path) == ROWS[:3]
