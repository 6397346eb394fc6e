"""Rows, tables and the Markdown report; `test_page.py` tests the HTML page."""

import html
import json
import re
import sys

import numpy as np
import pytest

from aa_flax import InputError, report
from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.report.__main__ import main
from aa_flax.report.comparisons import (
    Comparison,
    compared,
    dominated_variants,
    pareto_front,
    published_for,
)
from aa_flax.report.rows import _tail, conditions, gather
from aa_flax.weights.published import choose


def result(model, top1, consistency=None, **more):
    shift = {} if consistency is None else {"shift": {"consistency": consistency}}
    facts = {"model": model, "weights": {"kind": "file", "file": "somewhere"}, "num_images": 100}
    return {**facts, "top1": top1, **shift, **more}


@pytest.fixture
def files(tmp_path):
    """Returns folders with one results file each."""

    def write(*results):
        for i, one in enumerate(results):
            path = tmp_path / f"run{i}" / "results.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(one))
        return [tmp_path / f"run{i}" for i in range(len(results))]

    return write


@pytest.fixture
def without_matplotlib(monkeypatch):
    """Disables figures, which take seconds to draw."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def rows_of(paths):
    return gather(paths).rows


MODELS = (
    result("resnet18", 70, 80, time={"milliseconds": 5.0, "batch_size": 48}),
    result("resnet18_lpf4", 72, 84, time={"milliseconds": 6.0, "batch_size": 48}),
    result("resnet18_lpf2", 71, 84),
    result("alexnet", 60, 90),
    result("vgg11", 75),
)


def test_rows_have_the_order_of_the_registry_and_seeds_share_one_row(files):
    more = (result("my_lpf3", 50, 60), result("resnet18", 72, 82))
    rows = rows_of(files(*more, *MODELS))
    assert [row.model for row in rows] == [
        "alexnet", "vgg11", "resnet18", "resnet18_lpf2", "resnet18_lpf4", "my_lpf3",
    ]  # fmt: skip
    assert rows[-1].base == "my"
    assert "| *resnet18* | 71.0 ± 1.4 | 81.0 ± 1.4 |" in report.table(rows)


def test_the_pareto_front_is_bold_and_beaten_variants_are_italic(files):
    rows = rows_of(files(*MODELS))
    assert pareto_front(rows) == {"resnet18_lpf4", "alexnet"}
    assert dominated_variants(rows) == {"resnet18", "resnet18_lpf2"}
    table = report.table(rows)
    assert "| **resnet18_lpf4** | 72.00 | 84.00 |" in table
    assert "| *resnet18_lpf2* | 71.00 | 84.00 |" in table
    assert "| vgg11 | 75.00 |  |" in table


def test_a_label_has_options_once_and_other_files_of_a_run_are_ignored(files):
    config = {"pool": "box", "model_options": {}, "num_epochs": 3}
    run = {"weights": {"kind": "run", "file": "runs/a"}, "config": config}
    folders = files(result("resnet18", 70, **run, options={"pool": "box"}), result("resnet18", 60))
    for name in ("config.json", "data.json", "versions.json"):
        (folders[0] / name).write_text("{}")
    rows, left_out = gather(folders)
    assert left_out == []
    assert "pool box" in rows[0].label
    assert rows[0].label.count("box") == 1


def test_one_result_has_an_interval_and_several_have_a_deviation(files):
    shift = {"consistency": 88.2, "consistency_interval": [86.4, 89.7]}
    time = {"milliseconds": 5.0, "milliseconds_quartiles": [4.9, 5.25]}
    one = result("resnet18", 70, shift=shift, time=time)
    table = report.table(rows_of(files(one)))
    assert "| 70.00 | 88.2 (86.4 to 89.7) | 5.00 (4.90 to 5.25) |" in table
    several = report.table(rows_of(files(one, one | {"top1": 72, "loss": 1})))
    assert "| 71.0 ± 1.4 | 88.20 ± 0.00 |" in several


def test_equal_models_are_both_on_the_front(files):
    rows = rows_of(files(result("resnet18", 70, 80), result("resnet34", 70, 80)))
    assert pareto_front(rows) == {"resnet18", "resnet34"}


def test_released_weights_are_compared_with_published_numbers():
    found = result("resnet18_lpf4", 71.67, 88.0)
    found["shift"]["consistency_interval"] = [87.8, 88.2]
    found["weights"] = {"file": f"folder/{choose('resnet18_lpf4').filename}"}
    assert published_for(found).training == "finetuned"
    pairs = compared(found)
    assert pairs["accuracy"].difference == pytest.approx(0)
    assert pairs["accuracy"].p_value == pytest.approx(1)
    assert pairs["consistency"].published == 88.36
    assert pairs["consistency"].difference == pytest.approx(-0.36)
    assert compared(result("resnet18_lpf4", 71.67)) == {}
    assert published_for(found | {"data": {"crop_size": 64}}) is None


def test_a_difference_of_1_96_standard_errors_has_a_p_of_five_percent():
    assert Comparison(71.0, 71.0 - 1.96 * np.sqrt(2), 1.0).p_value == pytest.approx(0.05, abs=1e-3)


def test_a_report_has_its_table_and_figures(files, tmp_path):
    diagonal = {"file": "d.npz", "images": [0, 1]}
    more = {"diagonal": diagonal, "equivariance": {"file": "e.npz"}}
    folders = files(*(model | more for model in MODELS[:2]), *MODELS[2:])
    for folder in folders[:2]:
        np.savez(folder / "d.npz", diag_probs=np.full((2, 5), 0.5))
        maps = np.ones((2, 4, 4)) / 4
        EquivarianceMaps(("stem", "logits"), (4, 32), maps, np.ones(2)).save(folder / "e.npz")
    written = report.write_report(rows_of(folders), tmp_path / "report")
    assert report.table(rows_of(folders)) in written.read_text()
    names = {path.name for path in written.parent.glob("*.png")}
    assert names == {
        "accuracy_consistency.png", "time_accuracy.png", "time_filter_size.png",
        "diagonal_resnet18.png", "equivariance_resnet18.png",
    }  # fmt: skip
    assert all(f"({name})" in written.read_text() for name in names)


@pytest.mark.usefixtures("without_matplotlib")
def test_run_times_are_listed_by_filter_size_next_to_the_baseline(files, tmp_path):
    slow = result("vgg11_lpf3", 75, time={"milliseconds": 9.0, "batch_size": 48})
    rows = rows_of(files(slow, *MODELS))
    text = report.write_report(rows, tmp_path / "report").read_text()
    assert "| model | baseline | lpf3 | lpf4 |" in text
    assert text.index("| resnet18 | 5.0 |  | 6.0 (1.20) |") < text.index("| vgg11 |  | 9.0 |  |")
    untimed = rows_of(files(*MODELS[2:]))
    assert "## Run time" not in report.write_report(untimed, tmp_path / "other").read_text()


@pytest.mark.usefixtures("without_matplotlib")
def test_the_command_prints_the_table_and_refuses_files_without_results(files, tmp_path, capsys):
    folders = [str(folder) for folder in files(*MODELS)]
    main([*folders, "--output", str(tmp_path / "out")])
    assert "| **alexnet** |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: no results in"):
        main([str(tmp_path / "out"), "--output", str(tmp_path / "out")])
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/results.json").write_text("{}")
    with pytest.raises(SystemExit, match=f"not searched, give them, e.g. {tmp_path / 'runs/one'}"):
        main([str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="has no results"):
        rows_of([tmp_path / "other.json"])


def test_the_command_explains_its_columns_and_ends_with_the_gains(capsys, tmp_path):
    shift = {"shift_range": 9}
    for model, consistency in (("resnet18", 61.25), ("resnet18_lpf4", 88.0), ("vgg11_lpf4", 90.0)):
        results = result(model, 70.0) | {"shift": {**shift, "consistency": consistency}}
        (tmp_path / f"{model}.json").write_text(json.dumps(results))
    main([str(tmp_path)])  # without --output nothing is written
    lines = capsys.readouterr().out.splitlines()
    assert "- `accuracy`: fraction of centre crops whose likeliest class is the true one." in lines
    assert lines[-1] == (
        "consistency 61.2 % → 88.0 % (resnet18 → resnet18_lpf4): how often two shifted views of "
        "one image get the same class"
    )
    assert "vgg11_lpf4:" not in "".join(lines)  # its baseline was not measured
    assert len(list(tmp_path.iterdir())) == 3


def test_html_without_output_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["results.json", "--html"])
    assert "--html needs --output DIR" in capsys.readouterr().err


def of_run(top1, *, seed=0, crop=40, passes=5, epochs=5, lr=0.1, **more):
    """Writes results as `eval.py` does for a run of `train.py`."""
    config = {
        "name": f"run{seed}",
        "seed": seed,
        "num_epochs": epochs,
        "optimizer": {"learning_rate": lr},
        "eval": {"passes": passes, "batch_size": 64, "seed": 0},
        "data": {"name": "digits", "num_workers": seed},
    }
    data = {"name": "digits", "path": "", "crop_size": crop, "image_size": 48, "resize_size": 0}
    shift = {"consistency": top1 - 10, "shift_range": 9, "passes": passes, "seed": 0}
    return {
        "model": "resnet18",
        "weights": {"kind": "run", "file": f"runs/{seed}", "epoch": 5},
        "num_images": 450,
        "top1": float(top1),
        "loss": 1.0,
        "shift": {**shift, "images_per_draw": 1},
        "data": data,
        "config": config,
        **more,
    }


def test_results_that_differ_only_in_their_seed_are_one_row(files):
    rows = rows_of(files(of_run(70), of_run(72, seed=1)))
    assert "| **resnet18** | 71.0 ± 1.4 | 61.0 ± 1.4 |" in report.table(rows)
    assert conditions(rows).startswith("data digits, 450 images, crop 40, offsets 0..8, ")
    assert "passes 5" in conditions(rows)


@pytest.mark.parametrize(
    ("change", "labels"),
    [
        ({"crop": 64}, ("crop 40", "crop 64")),
        ({"epochs": 3}, ("num epochs 5", "num epochs 3")),
        ({"lr": 0.2}, ("optimizer.learning_rate 0.1", "optimizer.learning_rate 0.2")),
        ({"passes": 20}, ("passes 5", "passes 20")),
        ({"num_images": 100}, ("450 images", "100 images")),
    ],
)
def test_other_experiments_are_separate_rows(files, change, labels):
    rows = rows_of(files(of_run(70), of_run(30, **change)))
    assert [row.label for row in rows] == list(labels)
    assert "±" not in report.table(rows)
    assert f"resnet18** ({labels[0]}) | 70.00" in report.table(rows)


def test_the_label_of_a_run_next_to_weights_files_omits_its_training(files):
    file = {"weights": {"kind": "file", "file": "/a/b/w.safetensors"}}
    other = {"weights": {"kind": "file", "file": "/a/c/w.safetensors"}}
    rows = rows_of(files(of_run(70), of_run(60, **file), of_run(50, **other)))
    assert [row.label for row in rows] == [
        "run weights",
        "b/w.safetensors weights",
        "c/w.safetensors weights",
    ]
    assert _tail("w", {"w", "a/w"}) == "w"  # nothing shorter distinguishes them


def test_only_results_measured_alike_are_judged(files):
    rows = rows_of(files(of_run(70), of_run(30, crop=64), of_run(60, epochs=3)))
    assert pareto_front(rows) == {rows[0].title, rows[1].title}
    assert dominated_variants(rows) == {rows[2].title}


def test_files_with_different_measures_of_the_same_weights_are_one_result(files):
    more = of_run(70, worst_case={"top1_worst": 33.0})
    del more["shift"]
    more["config"]["eval"]["shift_range"] = 9
    both = of_run(70)
    both["config"]["eval"]["shift_range"] = 9
    (row,) = rows_of(files(both, more))
    assert len(row.results) == 1
    assert row.values(("worst_case", "top1_worst")) == [33.0]
    assert row.values(("shift", "consistency")) == [60.0]


@pytest.mark.usefixtures("without_matplotlib")
def test_all_results_of_a_folder_are_read_and_everything_left_out_is_named(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    contents = {
        "results.json": of_run(70, mine={"mean": 1.0}),
        "results_2.json": of_run(50, crop=64),
        "resnet18.json": of_run(60, epochs=3, diagonal={"file": "gone.npz", "images": [0]}),
        "data.json": {},
        "config.json": {"model": "a"},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "cut.json").write_text("{")
    main([str(folder), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    for number in ("70.00", "50.00", "60.00"):
        assert number in printed
    assert f"left out: {folder / 'cut.json'} is truncated" in printed
    assert (
        f"left out: {folder / 'resnet18.json'}: diagonal, since {folder / 'gone.npz'} is missing"
        in printed
    )
    assert f"left out: {folder / 'results.json'}: mine, which is not a known measure" in printed
    assert "config.json" not in printed
    assert "data.json" not in printed
    assert "## Left out" in (tmp_path / "out/report.md").read_text()


def test_an_unwritable_report_is_a_one_line_error(files, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: the report cannot be written to"):
        main([str(files(*MODELS)[0]), "--output", str(tmp_path / "file/out")])


ODD = "a|b\n# c <i>`d`</i> [e](https://f.g) *h* _i_ www.j.k $l$ ../m"


@pytest.mark.usefixtures("without_matplotlib")
def test_names_with_markup_are_shown_unchanged(files, tmp_path):
    markdown_it = pytest.importorskip("markdown_it")
    rows = rows_of(files(*MODELS, result(ODD, 50, 60), result(f"{ODD}_lpf2", 51, 62)))
    text = report.write_report(rows, tmp_path / "report", [ODD]).read_text()
    page = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(text)
    shown = html.unescape(re.sub("<[^>]*>", "", page))
    assert shown.count(" ".join(ODD.split())) == 5
    assert page.count("<i>") == page.count("<code>d") == page.count('<a href="https') == 0
    assert len({line.count("|") for line in report.table(rows).splitlines()}) == 1


def test_a_figure_of_a_name_with_slashes_stays_in_its_folder(files, tmp_path):
    (folder,) = files(result("../../a", 70, diagonal={"file": "d.npz", "images": [0]}))
    np.savez(folder / "d.npz", diag_probs=np.full((1, 5), 0.5))
    report.write_report(rows_of([folder]), tmp_path / "b/c/report")
    assert (tmp_path / "b/c/report/diagonal_..%2F..%2Fa.png").is_file()


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_report_omits_only_the_figures(files, tmp_path, capsys):
    rows = rows_of(files(*MODELS))
    text = report.write_report(rows, tmp_path / "out").read_text()
    assert report.table(rows) in text
    assert (
        "left out: figures need matplotlib: pip install 'aa_flax[plots]'" in capsys.readouterr().out
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.md"]


@pytest.mark.usefixtures("without_matplotlib")
def test_the_report_has_date_versions_device_and_weights_if_recorded(files, tmp_path):
    facts = {"date": "2026-11-30", "aa_flax": "0.1.0", "jax": "0.10.2", "Python": "3.11.7"}
    measured = {"accuracy": facts | {"device": "cpu"}, "time": facts | {"date": "2026-12-02"}}
    rows = rows_of(files(result("resnet18", 70, measured=measured), *MODELS[1:]))
    text = report.write_report(rows, tmp_path).read_text()
    versions = "aa_flax 0.1.0, jax 0.10.2, Python 3.11.7"
    assert f"Measured 2026-11-30 to 2026-12-02 on cpu, with {versions}." in text
    assert "- resnet18: somewhere\n" in text
    assert "Measured" not in report.write_report(rows[:1], tmp_path).read_text()
