import json
import sys

import numpy as np
import pytest

from aa_flax import InputError
from aa_flax.evaluation import report
from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.published import compare, comparisons, published_for
from aa_flax.weights.pretrained import choose


def result(model, top1, consistency=None, **more):
    pair = {} if consistency is None else {"consistency": consistency, "consistency_ci95": 1.0}
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


def test_equal_nets_are_both_on_the_front(files):
    rows = report.read_rows(files(result("resnet18", 70, 80), result("resnet34", 70, 80)))
    assert report.pareto_front(rows) == {"resnet18", "resnet34"}


def test_released_weights_are_compared_with_what_was_published():
    found = result("resnet18_lpf4", 71.67, 88.0)
    released = choose("resnet18_lpf4").filename
    found |= {"weights": f"folder/{released}", "num_images": 50000, "consistency_ci95": 0.2}
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
        "accuracy_consistency.png", "time_accuracy.png", "diagonal_resnet18.png",
        "equivariance_resnet18.png",
    }  # fmt: skip
    assert all(f"({name})" in written.read_text() for name in names)


def test_the_command_prints_the_table_and_names_what_is_no_result(files, tmp_path, capsys):
    folders = [str(folder) for folder in files(*NETS)]
    report.main([*folders, "--output", str(tmp_path / "out")])
    assert "| **alexnet** |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: no results in"):
        report.main([str(tmp_path / "out"), "--output", str(tmp_path / "out")])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="holds no results"):
        report.read_rows([tmp_path / "other.json"])


def test_without_matplotlib_a_figure_says_what_to_install(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'aa_flax\[plots\]'"):
        report.write_report(report.read_rows(files(*NETS)), tmp_path)
