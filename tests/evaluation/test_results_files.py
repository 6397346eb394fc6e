"""Files of results: concurrent writers, valid and invalid content."""

import copy
import errno
import json
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

import filelock
import jax
import numpy as np
import pytest

from aa_flax import InputError, evaluate, files, report
from aa_flax.evaluation.engine import summary
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.results import (
    has_measured,
    read_results,
    same_experiment,
    write_results,
)
from aa_flax.files import check_writable
from tests.evaluation.tiny import CLASSES, COUNT, Noise

SIZES: dict[str, Any] = {
    "crop_size": 10,
    "image_size": 14,
    "resize_size": 0,
    "shift_range": 5,
    "batch_size": 8,
}
FACTS = {"model": "a", "weights": {"file": "a", "sha256": "1"}, "data": {}, "num_images": 5}


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def evaluate_two(folder, *measures):
    """Both functions are called before either evaluation has finished."""
    together, met = threading.Barrier(2), set()

    def start(name, label):
        def predict(images):
            if name not in met:
                met.add(name)
                together.wait(60)
            return np.eye(CLASSES, dtype=np.float32)[np.full(len(images), label)]

        described: dict[str, Any] = {"name": name, "weights": {"file": name}, "jit": False}
        evaluate(predict, Noise(), measures, output=folder / "r.json", **described, **SIZES)

    threads = [threading.Thread(target=start, args=one) for one in (("one", 0), ("two", 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_two_evaluations_at_once_both_results_are_kept(tmp_path):
    evaluate_two(tmp_path, "accuracy")
    assert listed(tmp_path) == ["r.json", "r_2.json"]
    assert {read_results(tmp_path / name)["model"] for name in listed(tmp_path)} == {"one", "two"}


def test_arrays_go_where_their_results_go(tmp_path):
    evaluate_two(tmp_path, "diagonal")
    names = [f"{stem}{end}" for stem in ("r", "r_2") for end in (".json", "_diagonal.npz")]
    assert {*names, "r_diagonal.png", "r_2_diagonal.png"} == {*listed(tmp_path)}
    correct = {"one": Noise().labels == 0, "two": Noise().labels == 1}
    for stem in ("r", "r_2"):
        results = read_results(tmp_path / f"{stem}.json")
        assert results["diagonal"]["file"] == f"{stem}_diagonal.npz"
        assert results["diagonal"]["figure"] == f"{stem}_diagonal.png"
        found = np.load(tmp_path / results["diagonal"]["file"])["diag_corrs"]
        np.testing.assert_array_equal(found[:, 0], correct[results["model"]])


def test_measures_that_processes_add_to_one_file_are_all_kept(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from aa_flax.evaluation.results import write_results\n"
        "for i in range(20):\n"
        f"    write_results(Path(sys.argv[2]), {FACTS} | {{f'{{sys.argv[1]}}{{i}}': i}})"
    )
    command = [sys.executable, "-c", code]
    output = tmp_path / "r.json"
    processes = [subprocess.Popen([*command, name, str(output)]) for name in ("x", "y")]
    assert [process.wait() for process in processes] == [0, 0]
    expected = {f"{name}{i}" for name in ("x", "y") for i in range(20)}
    assert read_results(output).keys() - FACTS.keys() == expected
    assert listed(tmp_path) == ["r.json"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_where_nothing_can_be_locked_results_are_written_and_that_is_reported_once(
    tmp_path, monkeypatch, capsys, code
):
    def acquire(*_):
        raise OSError(code, "Function not implemented")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    for name in ("x", "y"):
        write_results(tmp_path / "r.json", FACTS | {name: 1})
    assert {"x", "y"} <= read_results(tmp_path / "r.json").keys()
    assert capsys.readouterr().out.count("cannot be locked (Function not implemented)") == 1


def test_all_passes_over_unknown_weights_go_to_one_file(tmp_path):
    """A function without weights is a new one in each evaluation, but the same within one."""
    sizes = SIZES | {"output": tmp_path / "r.json", "jit": False}
    evaluate(lambda x: np.ones((len(x), CLASSES)), Noise(), ("accuracy", "time"), **sizes)
    assert listed(tmp_path) == ["r.json"]
    assert {"top1", "time"} <= read_results(tmp_path / "r.json").keys()


def test_a_batch_has_no_more_images_than_the_data_and_its_size_changes_no_number(tmp_path):
    shapes, found = set(), []

    def predict(images):
        shapes.add(images.shape[0])
        return images.reshape(len(images), -1)[:, :CLASSES]

    sizes = {key: value for key, value in SIZES.items() if key != "batch_size"}
    for batch_size in (0, 4, 4096):
        measures = ("accuracy", "shift", "worst_case", "per_class")
        more: dict[str, Any] = {"batch_size": batch_size, "jit": False, "name": "net", **sizes}
        found.append(evaluate(predict, Noise(), measures, **more))
    devices = jax.device_count()
    assert shapes == {4, -(-COUNT // devices) * devices}
    assert found[0] == found[1] == found[2]


def test_a_full_disk_is_found_before_anything_is_measured(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match=r"r\.json cannot be written: No space left on device"):
        check_writable(tmp_path / "r.json", room=True)


PICTURE = {
    **dict.fromkeys(("image", "class", "worst_class"), "a"),
    **dict.fromkeys(("probability", "worst_probability", "same_class"), 1.0),
    "worst_shift": [0, 1],
}
NUMBERS = (
    *("consistency", "consistency_ci95", "same_class", "worst_case", "probability_change"),
    *("probability_change_worst", "flips_per_second", "flips_per_second_smoothed"),
    *("run_median_seconds", "difference", "difference_worst", "label_agreement"),
)
PERCENT = dict.fromkeys(NUMBERS, 1.0)
STORED = {
    "diagonal": {"file": "r_diagonal.npz", "figure": "d.png", "images": [0]},
    "equivariance": {"file": "r_diagonal.npz", "figure": "e.png", "mean_distance": {"conv": 1.0}},
    "images": {"digest": "1", "within": 3, "num_images": 2, "least_stable": [PICTURE], **PERCENT},
    "clip": {"digest": "1", "fps": 25.0, "fps_from": "header", "window": 3, "num_frames": 9}
    | PERCENT,
    "tiles": {"digest": "1", "num_tiles": 4, "tile_size": 8, "tile_overlap": 0} | PERCENT,
}
ODD = (None, True, -1, 1e400, 10**400, "", "a" * 5000, "\0", "\ud800", "~nobody/x", [], [[]], {})


def positions(value, path=()):
    """Yields every position in a JSON value, with the first item of a list for all."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from positions(item, (*path, key))


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Results with a part of every kind."""
    path = tmp_path_factory.mktemp("complete") / "r.json"
    measures = ("accuracy", "shift", "worst_case", "diagonal", "per_class", "time")
    weights = {"kind": "file", "file": "a.pt", "sha256": "1" * 64, "epoch": 3, "licence": None}
    described: dict[str, Any] = {"weights": weights, "jit": False, "name": "net", **SIZES}
    evaluate(
        lambda x: np.eye(CLASSES)[np.zeros(len(x), int)],
        Noise(),
        measures,
        output=path,
        **described,
    )
    config = {"data": {"path": "a", "crop_size": 10}, "eval": {"shift_range": 5}}
    facts = {"dtype": "float32", "options": {"pool": "box"}, "config": config}
    found = read_results(path) | facts | STORED
    for group in ("per_class", "measured"):  # two of each kind suffice
        found[group] = dict([*found[group].items()][:2])
    found["worst_case"]["offsets"] = found["worst_case"]["offsets"][:2]
    path.write_text(json.dumps(found))
    return path


def everything_that_reads(path):
    results = read_results(path)
    gathered = report.gather([path])
    report.table(gathered.rows)
    for measure in MEASURES.values():
        measure.section(gathered.rows)
        getattr(measure, "groups", len)(gathered.rows)
    same_experiment(results, results)
    has_measured(results, "shift", {"passes": 3}, path.parent)
    has_measured(results, "diagonal", {"images": [0]}, path.parent)
    with suppress(KeyError):  # a number is missing
        summary(results)


def test_any_odd_value_anywhere_is_read_or_refused_in_one_line(complete):
    results = json.loads(complete.read_text())
    everything_that_reads(complete)
    refused = []
    for *above, key in positions(results):
        for odd in (*ODD, "gone"):
            changed = copy.deepcopy(results)
            part = changed
            for name in above:
                part = part[name]
            part[key] = odd
            if odd == "gone":
                del part[key]
            complete.write_text(json.dumps(changed))
            try:
                everything_that_reads(complete)
            except InputError as error:
                refused.append(str(error))
    assert len(refused) > 500
    assert all("r.json " in line and "\n" not in line for line in refused)


DEEP = '{"model": ' * 900 + "1" + "}" * 900


@pytest.mark.parametrize("text", ["[" * 100_000, DEEP, '{"model": 5}'])
def test_json_of_any_depth_and_shape_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=r"r\.json .*no results of an evaluation") as refused:
        read_results(tmp_path / "r.json")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("weights", [{"file": 5}, {"file": object()}, {"epoch": "three"}])
def test_weights_that_cannot_be_stored_are_refused_before_anything_is_measured(tmp_path, weights):
    with pytest.raises(InputError, match="name and weights cannot be stored"):
        evaluate(abs, Noise(), weights=weights, jit=False, **SIZES)
