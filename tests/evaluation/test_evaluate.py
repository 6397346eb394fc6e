"""Evaluation as `eval.py` does it: what is written, kept, refused; with one host and with two."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from aa_flax import InputError
from aa_flax.evaluation import evaluate as module
from aa_flax.evaluation.evaluate import Measures, evaluate, is_done
from aa_flax.evaluation.timing import time_forward
from benchmarks.reference import abstract_model
from tests.evaluation.tiny import COUNT, Flat, Noise, Small, noise_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def noise(monkeypatch):
    monkeypatch.setattr(module, "make_source", lambda data, split: Noise())


@pytest.mark.usefixtures("noise")
def test_everything_is_written_with_its_settings(tmp_path, capsys):
    names = (
        "shift per_batch circular worst_case subpixel jitter diagonal equivariance per_class time"
    )
    measures = dict.fromkeys(names.split(), True) | {"predictions": tmp_path / "p.npz"}
    output = tmp_path / "deep/results.json"
    found = evaluate(
        Small(), noise_config(), weights="random", output=output, images=(1, 3), **measures
    )
    written = json.loads(output.read_text())
    assert written == json.loads(json.dumps(found))
    assert written["num_images"] == COUNT
    assert (written["passes"], written["seed"], written["images_per_draw"]) == (3, 0, 8)
    assert written["circular"]["shift_range"] == 5
    assert len(written["worst_case"]["offsets"]) == 25
    assert written["jitter"]["scale"] == 0.1
    assert written["time"]["batch_size"] == 48
    assert written["config"]["eval"]["shift_range"] == 5
    for measure in ("diagonal", "equivariance"):
        assert (output.parent / written[measure]["figure"]).stat().st_size > 0
    saved = np.load(output.parent / written["diagonal"]["file"])
    assert set(saved) == {"diag_probs", "diag_probs2", "diag_corrs", "diag_preds"}
    assert saved["diag_probs"].shape == (COUNT, 5)
    assert (tmp_path / "p.npz").exists()
    printed = capsys.readouterr().out
    assert f"consistency {written['consistency']:6.2f} ±" in printed


@pytest.mark.usefixtures("noise")
def test_results_of_the_same_net_are_added_and_of_another_replaced(tmp_path):
    output, config = tmp_path / "results.json", noise_config()
    evaluate(Flat(), config, weights="a", output=output, shift=True)
    evaluate(Flat(), config, weights="a", output=output, worst_case=True)
    assert {"consistency", "worst_case"} <= json.loads(output.read_text()).keys()
    assert is_done(output, "flat", "a", config, Measures(shift=True, worst_case=True))
    assert not is_done(output, "flat", "a", config, Measures(jitter=True))
    assert not is_done(output, "flat", "b", config, Measures(shift=True))
    config.eval.seed = 1
    assert not is_done(output, "flat", "a", config, Measures(shift=True))
    evaluate(Flat(), config, weights="a", output=output)
    assert "consistency" not in json.loads(output.read_text())


def test_a_net_for_other_classes_than_the_data_is_refused(tmp_path):
    config = noise_config()
    config.data.image_size = 48
    with pytest.raises(InputError, match=r"flat has weights for 6 classes, but the data has 10"):
        evaluate(Flat(), config, weights="none", output=tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.usefixtures("noise")
def test_an_image_that_is_not_there_cannot_be_shown(tmp_path):
    with pytest.raises(InputError, match=r"no image 22: the data has images 0\.\.21"):
        evaluate(
            Flat(),
            noise_config(),
            weights="",
            output=tmp_path / "r.json",
            diagonal=True,
            images=(22,),
        )


@pytest.mark.usefixtures("noise")
def test_crops_that_a_net_cannot_see_are_named(tmp_path):
    config, model = noise_config(), abstract_model("resnet18_lpf4")
    with pytest.raises(InputError, match="resnet18_lpf4 cannot see crops of 10 pixels"):
        evaluate(model, config, weights="", output=tmp_path / "r.json")


def test_the_time_is_of_a_compiled_pass():
    found = time_forward(Flat(), 10, batch_size=4, repeats=3)
    assert found["batch_size"] == 4
    assert 0 < found["milliseconds"] < 1000
    assert found["device"] == jax.devices()[0].device_kind


@pytest.mark.usefixtures("noise")
def test_two_hosts_find_what_one_finds(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    outputs = [tmp_path / f"host{i}" / "results.json" for i in range(2)]
    command = [sys.executable, "-m", "tests.evaluation.host", str(port)]
    hosts = [
        subprocess.Popen([*command, str(i), str(outputs[i])], cwd=ROOT, stdout=subprocess.PIPE)
        for i in range(2)
    ]
    try:
        printed = [host.communicate(timeout=120)[0].decode() for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0]
    assert not outputs[1].parent.exists()  # the first host writes
    found = [re.findall(r"host \d: (.*)", text) for text in printed]  # Gloo prints between lines
    assert len(found[0]) == 1
    assert found[0] == found[1]
    assert ["written to" in text for text in printed] == [True, False]
    measures = {"shift": True, "worst_case": True, "equivariance": True, "per_class": True}
    alone = evaluate(
        Small(), noise_config(), weights="none", output=tmp_path / "alone/r.json", **measures
    )
    together = json.loads(outputs[0].read_text())
    for key in ("top1", "top5", "consistency", "consistency_ci95", "per_class", "worst_case"):
        assert together[key] == json.loads(json.dumps(alone[key])), key
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    ours = alone["equivariance"]["mean_distance"]
    assert together["equivariance"]["mean_distance"] == pytest.approx(ours, abs=1e-3)
