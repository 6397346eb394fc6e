import html
import json
import re
import sys

import numpy as np
import pytest

from aa_flax import InputError
from aa_flax.evaluation import report
from aa_flax.evaluation import rows as rows_module
from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.published import compare, comparisons, published_for
from aa_flax.weights.published import choose


def result(model, top1, consistency=None, **more):
    pair = {} if consistency is None else {"consistency": consistency}
    return {
        "model": model,
        "weights": "somewhere",
        "num_images": 100,
        "top1": top1,
        **pair,
        **more,
    }


@pytest.fixture
def files(tmp_path):
    def write(*results):
        for i, one in enumerate(results):
            path = tmp_path / f"run{i}" / "results.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(one))
        return [tmp_path / f"run{i}" for i in range(len(results))]

    return write


NETS = (
    result("resnet18", 70, 80, time={"milliseconds": 5.0, "batch_size": 48}),
    result("resnet18_lpf4", 72, 84, time={"milliseconds": 6.0, "batch_size": 48}),
    result("resnet18_lpf2", 71, 84),
    result("alexnet", 60, 90),
    result("vgg11", 75),
)


def test_rows_are_in_the_registrys_order_and_seeds_are_one_row(files):
    rows = report.read_rows(files(*NETS, result("resnet18", 72, 82)))
    assert [row.model for row in rows] == [
        "alexnet", "vgg11", "resnet18", "resnet18_lpf2", "resnet18_lpf4",
    ]  # fmt: skip
    assert "| *resnet18* | 71.0 ± 1.4 | 81.0 ± 1.4 |" in report.table(rows)


def test_the_front_is_bold_and_beaten_versions_are_italic(files):
    rows = report.read_rows(files(*NETS))
    assert report.pareto_front(rows) == {"resnet18_lpf4", "alexnet"}
    assert report.dominated_variants(rows) == {"resnet18", "resnet18_lpf2"}
    table = report.table(rows)
    assert "| **resnet18_lpf4** | 72.00 | 84.00 |" in table
    assert "| *resnet18_lpf2* | 71.00 | 84.00 |" in table
    assert "| vgg11 | 75.00 |  |" in table


def test_options_are_told_once_and_a_runs_other_files_are_no_results(files):
    config = {"pool": "box", "model_options": {}, "num_epochs": 3}
    run = {"weights": {"kind": "run", "file": "runs/a"}, "config": config}
    folders = files(result("resnet18", 70, **run, options={"pool": "box"}), result("resnet18", 60))
    for name in ("config.json", "data.json", "versions.json"):
        (folders[0] / name).write_text("{}")
    rows, left_out = rows_module.gather(folders)
    assert left_out == []
    assert "pool box" in rows[0].label
    assert rows[0].label.count("box") == 1


def test_one_result_has_its_interval_and_several_their_deviation(files):
    shift = {"consistency": 88.2, "consistency_interval": [86.4, 89.7]}
    time = {"milliseconds": 5.0, "milliseconds_quartiles": [4.9, 5.25]}
    one = result("resnet18", 70, shift=shift, time=time)
    table = report.table(report.read_rows(files(one)))
    assert "| 70.00 | 88.2 (86.4 to 89.7) | 5.00 (4.90 to 5.25) |" in table
    several = report.table(report.read_rows(files(one, one | {"top1": 72, "loss": 1})))
    assert "| 71.0 ± 1.4 | 88.20 ± 0.00 |" in several


def test_equal_nets_are_both_on_the_front(files):
    rows = report.read_rows(files(result("resnet18", 70, 80), result("resnet34", 70, 80)))
    assert report.pareto_front(rows) == {"resnet18", "resnet34"}


def test_released_weights_are_compared_with_what_was_published():
    found = result("resnet18_lpf4", 71.67, 88.0)
    released = choose("resnet18_lpf4").filename
    found |= {
        "weights": f"folder/{released}",
        "num_images": 50000,
        "consistency_interval": [87.8, 88.2],
    }
    assert published_for(found).training == "finetuned"
    compared = comparisons(found)
    assert compared["accuracy"].difference == pytest.approx(0)
    assert compared["accuracy"].p_value == pytest.approx(1)
    assert compared["consistency"].published == 88.36
    assert compared["consistency"].difference == pytest.approx(-0.36)
    assert comparisons(result("resnet18_lpf4", 71.67)) == {}


def test_a_difference_of_two_standard_errors_of_it_has_p_of_five_percent():
    assert compare(71.0, 71.0 - 1.96 * np.sqrt(2), 1.0).p_value == pytest.approx(0.05, abs=1e-3)


def test_a_report_has_its_table_and_figures(files, tmp_path):
    diagonal = {"file": "d.npz", "images": [0, 1]}
    nets = [dict(net) for net in NETS]
    for net in nets[:2]:
        net |= {"diagonal": diagonal, "equivariance": {"file": "e.npz"}}
    folders = files(*nets)
    for folder in folders[:2]:
        np.savez(folder / "d.npz", diag_probs=np.full((2, 5), 0.5))
        maps = np.ones((2, 4, 4)) / 4
        EquivarianceMaps(("stem", "logits"), (4, 32), maps, np.ones(2)).save(folder / "e.npz")
    written = report.write_report(report.read_rows(folders), tmp_path / "report")
    assert report.table(report.read_rows(folders)) in written.read_text()
    names = {path.name for path in written.parent.glob("*.png")}
    assert names == {
        "accuracy_consistency.png", "time_accuracy.png", "time_filter_size.png",
        "diagonal_resnet18.png", "equivariance_resnet18.png",
    }  # fmt: skip
    assert all(f"({name})" in written.read_text() for name in names)


def test_run_times_stand_by_filter_size_beside_the_baselines(files, tmp_path):
    slow = result("vgg11_lpf3", 75, time={"milliseconds": 9.0, "batch_size": 48})
    rows = report.read_rows(files(slow, *NETS))
    text = report.write_report(rows, tmp_path / "report").read_text()
    assert "| net | baseline | lpf3 | lpf4 |" in text
    assert text.index("| resnet18 | 5.0 |  | 6.0 (1.20) |") < text.index("| vgg11 |  | 9.0 |  |")
    untimed = report.read_rows(files(*NETS[2:]))
    assert "## Run time" not in report.write_report(untimed, tmp_path / "other").read_text()


def test_the_command_prints_the_table_and_names_what_is_no_result(files, tmp_path, capsys):
    folders = [str(folder) for folder in files(*NETS)]
    report.main([*folders, "--output", str(tmp_path / "out")])
    assert "| **alexnet** |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: no results in"):
        report.main([str(tmp_path / "out"), "--output", str(tmp_path / "out")])
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/results.json").write_text("{}")
    with pytest.raises(SystemExit, match=f"not read, give them, e.g. {tmp_path / 'runs/one'}"):
        report.main([str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="holds no results"):
        report.read_rows([tmp_path / "other.json"])


def test_the_command_explains_its_columns_and_ends_with_what_antialiasing_brought(capsys, tmp_path):
    shift = {"shift_range": 9}
    for model, consistency in (("resnet18", 61.25), ("resnet18_lpf4", 88.0), ("vgg11_lpf4", 90.0)):
        results = result(model, 70.0) | {"shift": {**shift, "consistency": consistency}}
        (tmp_path / f"{model}.json").write_text(json.dumps(results))
    report.main([str(tmp_path)])  # without --output nothing is written
    lines = capsys.readouterr().out.splitlines()
    assert "- `accuracy`: share of centre crops whose likeliest class is the true one." in lines
    assert lines[-1] == (
        "consistency 61.2 % → 88.0 % (resnet18 → resnet18_lpf4): how often two shifted views of "
        "one image get the same class"
    )
    assert "vgg11_lpf4:" not in "".join(lines)  # its baseline was not measured
    assert len(list(tmp_path.iterdir())) == 3


def test_a_page_without_a_folder_is_refused(capsys):
    with pytest.raises(SystemExit):
        report.main(["results.json", "--html"])
    assert "--html needs --output DIR" in capsys.readouterr().err


def of_run(top1, *, seed=0, crop=40, passes=5, epochs=5, lr=0.1, **more):
    """Results as `eval.py` writes them for a run of `train.py`."""
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


def test_results_that_differ_in_their_seed_alone_are_one_row(files):
    rows = report.read_rows(files(of_run(70), of_run(72, seed=1)))
    assert "| **resnet18** | 71.0 ± 1.4 | 61.0 ± 1.4 |" in report.table(rows)
    told = rows_module.conditions(rows)
    assert "450 images" in told
    assert "crop 40" in told
    assert "offsets 0..8" in told
    assert "passes 5" in told


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
def test_other_experiments_are_rows_of_their_own(files, change, labels):
    rows = report.read_rows(files(of_run(70), of_run(30, **change)))
    assert [row.label for row in rows] == list(labels)
    assert "±" not in report.table(rows)
    assert f"resnet18** ({labels[0]}) | 70.00" in report.table(rows)


def test_a_run_is_told_from_files_of_weights_without_the_whole_of_its_training(files):
    file = {"weights": {"kind": "file", "file": "/a/b/w.safetensors"}}
    other = {"weights": {"kind": "file", "file": "/a/c/w.safetensors"}}
    rows = report.read_rows(files(of_run(70), of_run(60, **file), of_run(50, **other)))
    assert [row.label for row in rows] == [
        "run weights",
        "b/w.safetensors weights",
        "c/w.safetensors weights",
    ]
    assert rows_module._tail("w", {"w", "a/w"}) == "w"  # nothing shorter tells them apart


def test_only_what_was_measured_alike_is_judged(files):
    rows = report.read_rows(files(of_run(70), of_run(30, crop=64), of_run(60, epochs=3)))
    assert report.pareto_front(rows) == {rows[0].title, rows[1].title}
    assert report.dominated_variants(rows) == {rows[2].title}


def test_files_with_other_measures_of_the_same_weights_are_one_result(files):
    more = of_run(70, worst_case={"top1_worst": 33.0})
    del more["shift"]
    more["config"]["eval"]["shift_range"] = 9
    both = of_run(70)
    both["config"]["eval"]["shift_range"] = 9
    (row,) = report.read_rows(files(both, more))
    assert len(row.results) == 1
    assert row.values(("worst_case", "top1_worst")) == [33.0]
    assert row.values(("shift", "consistency")) == [60.0]


def test_a_folder_gives_all_of_its_results_and_what_is_left_out_is_named(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    there = {"results.json": of_run(70, mine={"mean": 1.0}), "results_2.json": of_run(50, crop=64)}
    gone = of_run(60, epochs=3, diagonal={"file": "gone.npz", "images": [0]})
    for name, content in (
        there | {"resnet18.json": gone, "data.json": {}, "config.json": {"model": "a"}}
    ).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "cut.json").write_text("{")
    report.main([str(folder), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    for number in ("70.00", "50.00", "60.00"):
        assert number in printed
    assert f"left out: {folder / 'cut.json'} is cut" in printed
    assert f"left out: {folder / 'resnet18.json'}: diagonal, since {folder / 'gone.npz'}" in printed
    assert f"left out: {folder / 'results.json'}: mine, which is no measure known" in printed
    assert "config.json" not in printed
    assert "data.json" not in printed
    assert "## Left out" in (tmp_path / "out/report.md").read_text()


def test_a_net_that_the_registry_does_not_know_has_its_row(files, tmp_path):
    rows = report.read_rows(files(result("mynet_lpf3", 50, 60), *NETS))
    assert rows[-1].base == "mynet"
    assert "mynet_lpf3" in report.write_report(rows, tmp_path / "out").read_text()


def test_old_results_of_runs_are_grouped_by_their_config(files):
    old = [of_run(70), of_run(72, seed=1)]
    for i, results in enumerate(old):
        results |= {"weights": f"runs/{i} (epoch 5, the best)"} | results.pop("shift")
        del results["data"]
    (row,) = report.read_rows(files(*old))
    assert row.values(("shift", "consistency")) == [60.0, 62.0]


def test_a_report_that_cannot_be_written_is_one_line(files, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: the report cannot be written to"):
        report.main([str(files(*NETS)[0]), "--output", str(tmp_path / "file/out")])


def test_published_figures_are_of_crops_of_224_pixels():
    released = choose("resnet18_lpf4").filename
    found = result("resnet18_lpf4", 71.67, 88.0)
    found["weights"] = {"kind": "released", "training": "finetuned", "file": released}
    assert published_for(found).accuracy == 71.67
    assert published_for(found | {"data": {"crop_size": 64}}) is None


ODD = "a|b\n# c <i>`d`</i> [e](https://f.g) *h* _i_ www.j.k $l$ ../m"


def test_odd_names_are_shown_as_they_are(files, tmp_path):
    markdown_it = pytest.importorskip("markdown_it")
    rows = report.read_rows(files(*NETS, result(ODD, 50, 60), result(f"{ODD}_lpf2", 51, 62)))
    text = report.write_report(rows, tmp_path / "report", [ODD]).read_text()
    page = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(text)
    told = html.unescape(re.sub("<[^>]*>", "", page))
    assert told.count(" ".join(ODD.split())) == 5
    assert page.count("<i>") == page.count("<code>d") == page.count('<a href="https') == 0
    assert len({line.count("|") for line in report.table(rows).splitlines()}) == 1


def test_a_figure_of_an_odd_name_stays_in_its_folder(files, tmp_path):
    (folder,) = files(result("../../a", 70, diagonal={"file": "d.npz", "images": [0]}))
    np.savez(folder / "d.npz", diag_probs=np.full((1, 5), 0.5))
    report.write_report(report.read_rows([folder]), tmp_path / "b/c/report")
    assert (tmp_path / "b/c/report/diagonal_..%2F..%2Fa.png").is_file()


def test_without_matplotlib_the_report_has_all_but_figures(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    rows = report.read_rows(files(*NETS))
    text = report.write_report(rows, tmp_path / "out").read_text()
    assert report.table(rows) in text
    assert (
        "left out: figures need matplotlib: pip install 'aa_flax[plots]'" in capsys.readouterr().out
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.md"]


def test_date_versions_device_and_weights_are_told_where_results_have_them(files, tmp_path):
    facts = {"date": "2026-11-30", "aa_flax": "0.1.0", "jax": "0.10.2", "Python": "3.11.7"}
    measured = {"accuracy": facts | {"device": "cpu"}, "time": facts | {"date": "2026-12-02"}}
    rows = report.read_rows(files(result("resnet18", 70, measured=measured), *NETS[1:]))
    text = report.write_report(rows, tmp_path).read_text()
    told = (
        "Measured 2026-11-30 to 2026-12-02 on cpu, with aa_flax 0.1.0, jax 0.10.2, Python 3.11.7."
    )
    assert told in text
    assert "- resnet18: somewhere\n" in text
    assert "Measured" not in report.write_report(rows[:1], tmp_path).read_text()
