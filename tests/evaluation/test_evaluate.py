"""Evaluation by config: files, resuming and errors, with one host and with two."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError
from aa_flax.evaluation import engine
from aa_flax.evaluation.by_config import evaluate_config, make_plan
from aa_flax.evaluation.measure import measures_and_options
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.measures.time import time_forward
from aa_flax.evaluation.results import same_weights
from aa_flax.evaluation.text import with_interval
from aa_flax.report.rows import gather
from benchmarks.reference import abstract_model
from tests.evaluation.tiny import CLASSES, COUNT, CROP, Flat, Noise, Small, noise_config

ROOT = Path(__file__).parents[2]
WEIGHTS = {"kind": "file", "file": "a.safetensors", "sha256": "1"}


def run(output, *measures, model=None, config=None, weights=WEIGHTS, source=None, **options):
    config, source = config or noise_config(), source or Noise()
    return evaluate_config(
        model or Flat(),
        config,
        weights=weights,
        output=output,
        measures=measures,
        options=options,
        source=source,
    )


def read(path):
    return json.loads(path.read_text())


class Counted(Noise):
    def __init__(self):
        super().__init__()
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        return super().__getitem__(index)


class Rectangles(Noise):
    """A source of noise in odd and even sizes, some smaller than the centre crop."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(3)
        sizes = rng.integers(CROP, 24, (COUNT, 2))
        self.images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_everything_is_written_with_its_settings(tmp_path, capsys):
    output = tmp_path / "deep/results.json"
    names = "shift circular worst_case subpixel jitter diagonal equivariance per_class time"
    options = {"per_batch": True, "image_indices": (1, 3), "predictions": tmp_path / "p.npz"}
    found = run(output, *names.split(), model=Small(), **options)
    written = read(output)
    assert written == json.loads(json.dumps(found))
    assert written["num_images"] == COUNT
    shift = written["shift"]
    assert (shift["passes"], shift["seed"], shift["images_per_draw"]) == (3, 0, 8)
    assert all(written[key] == value for key, value in shift.items())  # at the top level, too
    assert written["circular"]["shift_range"] == 5
    assert len(written["worst_case"]["offsets"]) == 25
    assert written["jitter"]["scale"] == 0.1
    assert written["time"]["batch_size"] == 48
    assert written["data"]["crop_size"] == CROP
    assert written["config"]["eval"]["shift_range"] == 5
    for measure in ("diagonal", "equivariance"):
        assert (output.parent / written[measure]["figure"]).stat().st_size > 0
    saved = np.load(output.parent / written["diagonal"]["file"])
    assert {"diag_probs", "diag_probs2", "diag_corrs", "diag_preds"} < set(saved)
    assert saved["image_index"].tolist() == [1, 3]
    np.testing.assert_array_equal(saved["image_pixels"], Noise().images[[1, 3]])
    assert saved["image_class"].tolist() == [Noise.class_names[i] for i in Noise().labels[[1, 3]]]
    assert saved["diag_probs"].shape == (COUNT, 5)
    assert (tmp_path / "p.npz").exists()
    printed = capsys.readouterr().out
    interval = with_interval(written["consistency"], written["consistency_interval"])
    assert f"consistency {interval}" in printed
    top1 = [found["top1"] for found in written["per_class"].values() if isinstance(found, dict)]
    assert f"top-1 from {min(top1):.2f} %" in printed


@pytest.mark.parametrize("names", [["file", "top1", "num_images", "a", "b", "c"], np.arange(6)])
def test_results_of_each_class_are_kept_whatever_it_is_called(tmp_path, names):
    output, source = tmp_path / "results.json", Noise()
    source.class_names = names
    for _ in range(2):
        run(output, "per_class", source=source)
    kept = {name for name in map(str, names) if read(output)["per_class"][name]["num_images"]}
    assert len(kept) == CLASSES
    rows, left_out = gather([output])
    assert (len(rows), left_out) == (1, [])


def test_an_image_is_read_once_for_all_that_is_shown_of_it(tmp_path):
    source = Counted()
    run(tmp_path / "r.json", "shift", "worst_case", "per_class", source=source)
    assert sorted(set(source.reads)) == list(range(COUNT))
    padding = 24 - COUNT  # of the last batch of eight
    assert len(source.reads) == COUNT + padding


@pytest.mark.parametrize(("crop", "image"), [(10, 13), (9, 15)])
def test_accuracy_is_that_of_the_centre_crop_together_with_shifts_of_any_size(
    tmp_path, crop, image
):
    config = noise_config()
    config.data.crop_size, config.data.image_size, config.eval.shift_range = crop, image, 2
    args = {"model": Flat(crop), "config": config, "source": Rectangles()}
    alone = run(tmp_path / "alone.json", **args)
    together = run(tmp_path / "together.json", "shift", **args)
    for key in ("top1", "top5", "loss"):
        assert alone[key] == together[key]


def test_results_of_the_same_model_are_added(tmp_path):
    output, config = tmp_path / "results.json", noise_config()
    run(output, "shift")
    config.data.num_workers = 1  # which changes no result
    run(output, "worst_case", config=config)
    assert {"consistency", "shift", "worst_case"} <= read(output).keys()
    measured = read(output)["measured"]
    assert measured.keys() == {"accuracy", "shift", "worst_case"}
    assert measured["shift"]["jax"] == jax.__version__
    assert list(tmp_path.iterdir()) == [output]


def test_another_experiment_is_written_to_the_next_file(tmp_path, capsys):
    output, config = tmp_path / "results.json", noise_config()
    run(output, "shift")
    before = output.read_text()
    config.data.crop_size = 8
    run(output, "shift", config=config, model=Flat(8))
    assert output.read_text() == before
    printed = capsys.readouterr().out
    assert f"{output} has other results" in printed
    assert f"written to {tmp_path / 'results_2.json'}" in printed
    run(output, config=config, model=Flat(8))
    assert {"top1", "shift"} <= read(tmp_path / "results_2.json").keys()


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        ({"eval.seed": 1}, True),
        ({"eval.passes": 2}, True),
        ({"eval.shift_range": 4}, True),
        ({"data.resize_size": 20}, True),
        ({"data.path": "elsewhere"}, True),
        ({"dtype": "bfloat16"}, True),
        ({"data.num_workers": 1, "eval.batch_size": 4, "log.wandb": True}, False),
        ({"checkpoint.keep_every": 1, "remat": True, "name": "b", "num_epochs": 3}, False),
    ],
)
def test_whatever_changes_a_number_makes_another_experiment(tmp_path, change, is_another):
    config, output = noise_config(), tmp_path / "results.json"
    measures, options = measures_and_options(("shift",), {})

    def plan():
        return make_plan(config, "flat", WEIGHTS, Noise(), output, measures, options)

    shift = plan().settings["shift"]
    output.write_text(json.dumps(plan().facts | {"top1": 1.0, "shift": shift}))
    config.update_from_flattened_dict(change)
    path, results = engine.stored(plan())
    assert path == tmp_path / ("results_2.json" if is_another else "results.json")
    assert bool(results) == (not is_another)


def test_results_of_other_weights_are_written_to_the_next_file(tmp_path):
    output = tmp_path / "results.json"
    run(output)
    run(output, weights=WEIGHTS | {"sha256": "2"})
    run(output, "worst_case", weights=WEIGHTS | {"file": "a copy"})
    assert "worst_case" in read(output)
    assert read(tmp_path / "results_2.json")["weights"]["sha256"] == "2"


RUN = {"kind": "run", "file": "runs/a", "epoch": 3, "step": 9, "crc32": "1"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (WEIGHTS, WEIGHTS | {"file": "copy", "licence": "none"}, True),
        (WEIGHTS, WEIGHTS | {"sha256": "2"}, False),
        (WEIGHTS, WEIGHTS | {"file": "a.safetensors#ema"}, False),
        (RUN, RUN | {"file": str(ROOT / "runs/a")}, True),
        (RUN, {key: value for key, value in RUN.items() if key != "crc32"}, True),
        (RUN, RUN | {"crc32": "2"}, False),
        (RUN, RUN | {"epoch": 4}, False),
        (RUN, RUN | {"file": "runs/b"}, False),
        ("a.pth", "a.pth", True),
        ("a.pth", WEIGHTS, False),
    ],
)
def test_weights_are_known_by_what_they_are(one, other, same, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert same_weights(one, other) == same


def test_another_option_of_a_measure_is_written_to_the_next_file(tmp_path):
    output = tmp_path / "results.json"
    run(output, "shift")
    run(output, "shift", per_batch=True)
    assert read(output)["shift"]["images_per_draw"] == 1
    assert read(tmp_path / "results_2.json")["shift"]["images_per_draw"] == 8


def test_a_record_that_is_replaced_keeps_only_what_is_of_the_same_weights(tmp_path):
    output = tmp_path / "results.json"
    output.write_text("cut")
    args = {"output": output, "source": Noise(), "replace": True}
    first = evaluate_config(Flat(), noise_config(), weights={"epoch": 1}, **args)
    evaluate_config(Flat(), noise_config(), weights={"epoch": 1}, measures=["worst_case"], **args)
    assert read(output)["top1"] == first["top1"]
    assert "worst_case" in read(output)
    evaluate_config(Flat(), noise_config(), weights={"epoch": 2}, **args)
    assert "worst_case" not in read(output)
    assert list(tmp_path.iterdir()) == [output]


@pytest.fixture
def nothing_is_measured(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it was measured")

    monkeypatch.setattr(engine, "observe_source", refuse)


@pytest.mark.usefixtures("nothing_is_measured")
class TestBeforeAnythingIsMeasured:
    def test_a_model_for_other_classes_than_the_data_is_refused(self, tmp_path):
        source = Noise()
        source.num_classes = 10
        with pytest.raises(InputError, match=r"flat gives 6 logits, but the data has"):
            run(tmp_path / "results.json", source=source)
        assert not (tmp_path / "results.json").exists()

    def test_an_image_that_is_not_there_cannot_be_shown(self, tmp_path):
        with pytest.raises(InputError, match=r"no image 22: the data has images 0\.\.21"):
            run(tmp_path / "r.json", "diagonal", image_indices=(22,))

    def test_crops_that_a_model_cannot_process_are_named(self, tmp_path):
        with pytest.raises(InputError, match="resnet18_lpf4 cannot process crops of 10 pixels"):
            run(tmp_path / "r.json", model=abstract_model("resnet18_lpf4"))

    def test_images_too_small_for_the_shifts_are_refused(self, tmp_path):
        config = noise_config()
        config.eval.shift_range = 8
        with pytest.raises(InputError, match=r"14x14 pixels are too small.*they need 17"):
            run(tmp_path / "r.json", "shift", config=config)

    @pytest.mark.parametrize("text", ['{"model": "flat", ', "[1]", '{"lr": 1}'])
    def test_a_file_that_is_no_results_is_refused(self, tmp_path, text):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(
            InputError, match=r"results.json .*no results of an evaluation.*--output"
        ):
            run(tmp_path / "results.json")
        assert (tmp_path / "results.json").read_text() == text

    @pytest.mark.parametrize("output", ["file/results.json", "."])
    def test_an_output_that_cannot_be_written_is_named(self, tmp_path, output):
        (tmp_path / "file").touch()
        with pytest.raises(
            InputError, match=r"is a directory|is a file, but a directory is needed"
        ):
            run(tmp_path / output)

    def test_predictions_that_cannot_be_written_are_named(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(
            InputError, match=r"file/p\.npz: .*file is a file, but a directory is needed"
        ):
            run(tmp_path / "r.json", predictions=tmp_path / "file/p.npz")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"per_batch": True}, "--per_batch belongs to --shift; give that, too"),
            ({"shif": True}, "unknown option 'shif'; did you mean shift"),
            ({"image_indices": "0,x"}, "--image_indices takes integers such as 0,5,9; got 0,x"),
            ({"shift": 3}, "the option shift takes a bool, got 3"),
            ({"corruptions": "gs://c"}, "--corruptions gs://c is an address"),
        ],
    )
    def test_options_that_mean_nothing_are_named(self, tmp_path, options, message):
        with pytest.raises(InputError, match=message):
            run(tmp_path / "r.json", **options)

    def test_an_unknown_measure_is_named_with_the_nearest(self, tmp_path):
        with pytest.raises(InputError, match="unknown measure 'circle'; did you mean circular"):
            run(tmp_path / "r.json", "circle")


def test_an_empty_results_file_is_replaced(tmp_path):
    (tmp_path / "results.json").touch()
    run(tmp_path / "results.json")
    assert read(tmp_path / "results.json")["model"] == "flat"


MOVING = ("shift", "circular", "worst_case", "subpixel", "jitter", "diagonal", "per_class")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("measure", [*MOVING, "accuracy"])
def test_outputs_that_are_not_finite_are_an_error_of_every_measure(tmp_path, measure, value):
    model = Flat()
    nnx.update(model, jax.tree.map(lambda x: np.full_like(x, value), nnx.state(model)))
    with pytest.raises(InputError, match=r"output is not finite for \d+ of \d+ views"):
        run(tmp_path / "r.json", measure, model=model)
    assert not (tmp_path / "r.json").exists()


def test_what_was_measured_is_kept_when_interrupted(tmp_path, monkeypatch):
    output = tmp_path / "results.json"

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(MEASURES["time"]), "result", stop)
    with pytest.raises(KeyboardInterrupt, match=f"measured so far is kept in {output}"):
        run(output, "shift", "time")
    assert {"top1", "shift"} <= read(output).keys()


def test_the_time_is_of_a_compiled_pass():
    found = time_forward(Flat(), 10, batch_size=4, repeats=3)
    assert found["batch_size"] == 4
    low, high = found["milliseconds_quartiles"]
    assert 0 < low <= found["milliseconds"] <= high < 1000
    assert found["device"] == jax.devices()[0].device_kind


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
    measures = ("shift", "worst_case", "equivariance", "per_class")
    alone = run(tmp_path / "alone/r.json", *measures, model=Small())
    together = read(outputs[0])
    for key in ("top1", "top5", "consistency", "consistency_interval", "per_class", "worst_case"):
        assert together[key] == json.loads(json.dumps(alone[key])), key
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    ours = alone["equivariance"]["mean_distance"]
    assert together["equivariance"]["mean_distance"] == pytest.approx(ours, abs=1e-3)
