"""The command eval.py: one model or several; it resumes, and continues after a failure."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax import InputError, ModelConfig, create_model, list_models, save_weights
from aa_flax.config import check_config, images_of_config
from aa_flax.configs import digits_resnet18_lpf4, imagenet
from aa_flax.evaluation import by_config
from tests.evaluation.tiny import CROP, Flat, Noise, noise_config

ROOT = Path(__file__).parents[2]


def run(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "eval.py", *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


class Weights:
    """Mock weights of any model, `Flat` when they are loaded."""

    config = None

    def __init__(self, name: str, **facts):
        self.name = name
        self.facts = {"kind": "file", "file": f"{name}.safetensors", "sha256": name} | facts
        self.loaded, self.crop, self.images = 0, CROP, {}

    def description(self):
        return dict(self.facts)

    def config_changes(self):
        return {"weights": self.facts["file"], **self.images}

    def abstract_model(self, num_classes):
        return nnx.eval_shape(self.build)

    def load_model(self, **_):
        self.loaded += 1
        return self.build()

    def build(self):
        model = Flat(self.crop)
        model.name = self.name
        return model


@pytest.fixture
def weights(monkeypatch):
    """Returns the located weights by model, without `alexnet`'s."""
    there: dict[str, Weights] = {}

    def locate(source, *, model):
        if model == "alexnet":
            raise InputError(f"no weights for {model} in {source}")
        return there.setdefault(model, Weights(model))

    monkeypatch.setattr(by_config, "locate", locate)
    monkeypatch.setattr(by_config, "make_source", lambda data, split: Noise())
    return there


def several(folder, *names, config=None, weights="somewhere/{model}", **options):
    given = {"weights": weights, "output": str(folder), "options": options}
    by_config.evaluate_models(config or noise_config(), names, **given)


def one(config=None, output=None, weights="somewhere", **options):
    config = config or noise_config()
    given = {"weights": weights, "output": output, "options": options}
    return by_config.evaluate_models(config, **given)[0]


def test_a_model_with_results_is_not_loaded_and_a_failure_does_not_stop_the_others(
    tmp_path, weights, capsys
):
    names = ("vgg11", "alexnet", "resnet18")
    with pytest.raises(InputError, match=r"^1 models could not be evaluated: alexnet$"):
        several(tmp_path, *names, shift=True)
    assert "alexnet is skipped: no weights for alexnet" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"vgg11.json", "resnet18.json"}
    assert json.loads(before["vgg11.json"])["model"] == "vgg11"
    several(tmp_path, "vgg11", "resnet18", shift=True)
    assert f"{tmp_path / 'vgg11.json'} exists already" in capsys.readouterr().out
    assert [weights[name].loaded for name in ("vgg11", "resnet18")] == [1, 1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_measured_already_is_logged_and_not_measured_again(tmp_path, weights, capsys):
    output = str(tmp_path / "r.json")
    first = one(output=output, shift=True)
    printed = capsys.readouterr().out.splitlines()
    assert one(output=output, shift=True).items() >= first.items()
    again = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("  ")] == again[1:-1]
    assert f"{output} exists already; to measure again" in again[-1]
    several(tmp_path, "vgg11")
    several(tmp_path, "vgg11")
    assert "accuracy     top-1" in capsys.readouterr().out.partition("vgg11.json\n")[2]
    assert [weights[name].loaded for name in ("resnet18", "vgg11")] == [1, 1]


def test_other_options_are_measured(tmp_path, weights, capsys):
    asked = [
        {"shift": True},
        {"shift": True, "per_batch": True},
        {"predictions": tmp_path / "p.npz"},
        {"predictions": tmp_path / "q.npz"},
    ]
    for options in asked:
        several(tmp_path, "vgg11", **options)
        assert "exists already" not in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.npz")} == {"p_vgg11.npz", "q_vgg11.npz"}
    for options in asked:
        several(tmp_path, "vgg11", **options)
        assert "exists already" in capsys.readouterr().out
    assert weights["vgg11"].loaded == len(asked)
    (tmp_path / "p_vgg11.npz").unlink()
    several(tmp_path, "vgg11", **asked[2])
    assert (tmp_path / "p_vgg11.npz").is_file()


def test_images_of_another_size_than_those_of_the_weights_are_noted(tmp_path, weights, capsys):
    weights["vgg11"] = Weights("vgg11")
    weights["vgg11"].images = {"input_size": CROP, "resize_size": 303, "interpolation": "bicubic"}
    several(tmp_path, "vgg11", "resnet18")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: these weights are for images resized to 303 pixels (bicubic), crops of {CROP}; "
        f"here: images as they are, crops of {CROP}"
    ]


def test_images_are_resized_as_the_weights_need_and_numbers_of_both_are_separate(tmp_path, weights):
    weights["vgg11"] = Weights("vgg11")
    weights["vgg11"].images = {"interpolation": "bicubic"}
    config = noise_config()
    config.data.resize_size = 20
    several(tmp_path, "vgg11", "resnet18", config=config)
    config.data.interpolation = "bilinear"
    several(tmp_path, "vgg11", config=config)
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    ways = {name: results["data"]["interpolation"] for name, results in found.items()}
    assert ways == {
        "vgg11.json": "bicubic",
        "vgg11_2.json": "bilinear",
        "resnet18.json": "bilinear",
    }
    assert found["vgg11.json"]["loss"] != found["vgg11_2.json"]["loss"]


@pytest.mark.parametrize("name", list_models(licence="open"))
def test_a_model_of_timm_is_evaluated_on_bicubic_images_unless_its_weights_were_trained_here(name):
    config = check_config(noise_config())
    config.model = name
    assert by_config._as_trained(config, Weights(name)).data.interpolation == "bicubic"
    of_run = Weights(name)
    of_run.images = images_of_config(config.to_dict())
    assert by_config._as_trained(config, of_run).data.interpolation == "bilinear"


def test_images_that_would_be_normalised_differently_are_refused(tmp_path, weights):
    halves = (0.5, 0.5, 0.5)
    weights["vgg11"] = Weights("vgg11")
    weights["vgg11"].images = {"mean": halves}
    with pytest.raises(InputError, match="1 models could not be evaluated: vgg11"):
        several(tmp_path, "vgg11")
    assert weights["vgg11"].loaded == 0
    model = weights["vgg11"].build()
    model.config = ModelConfig(std=halves)
    with pytest.raises(InputError, match=r"^vgg11 expects images normalised by the mean \(0\.4"):
        aa_flax.evaluate(model, np.zeros((2, CROP, CROP, 3), np.uint8))


def test_a_changed_file_at_the_same_path_is_noticed(tmp_path, weights, capsys):
    several(tmp_path, "vgg11")
    weights["vgg11"].facts["sha256"] = "another"
    several(tmp_path, "vgg11")
    assert weights["vgg11"].loaded == 2
    assert f"written to {tmp_path / 'vgg11_2.json'}" in capsys.readouterr().out


def test_mistakes_are_found_before_any_model_is_located(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was located")

    monkeypatch.setattr(by_config, "locate", refuse)
    monkeypatch.setattr(by_config, "make_source", lambda data, split: Noise())
    with pytest.raises(InputError, match="no image 22: the data has images"):
        several(tmp_path, "vgg11", diagonal=True, image_indices=(22,))
    with pytest.raises(InputError, match=r"no folder .*c; it has to contain <corruption>"):
        several(tmp_path, "vgg11", corruptions=tmp_path / "c")
    with pytest.raises(
        InputError, match=r"unknown placeholder \('name'\); the only one is \{model\}"
    ):
        several(tmp_path, "vgg11", weights="x/{name}")
    with pytest.raises(
        InputError,
        match="ImageNet's 1000 classes, but the data has 6; give --config imagenet and --c",
    ):
        several(tmp_path, "vgg11", weights="pretrained")
    config = noise_config()
    config.data.image_size = 8
    with pytest.raises(InputError, match="image_size 8 is smaller than crop_size 10"):
        several(tmp_path, "vgg11", config=config)


def test_a_pattern_matches_models_with_published_weights():
    assert by_config.names_of(["resnet18*"], "pretrained") == [
        "resnet18", *(f"resnet18_lpf{k}" for k in (2, 3, 4, 5))
    ]  # fmt: skip
    assert by_config.names_of(["resnet18*", "vgg11_lpf4"], "finetuned") == [
        "resnet18_lpf4", "vgg11_lpf4"
    ]  # fmt: skip
    assert by_config.names_of(["resnet18_lpf7"], "pretrained") == [
        "resnet18_lpf7"
    ]  # named: an error
    assert by_config.names_of(["resnet18*"], "x/{model}") == list_models("resnet18*")
    with pytest.raises(InputError, match=r"no model matches 'resnet\*_lpf9'"):
        by_config.names_of(["resnet*_lpf9"], "pretrained")
    with pytest.raises(InputError, match=r"no model that matches '\*_lpf7' has pretrained weights"):
        by_config.names_of(["*_lpf7"], "pretrained")


@pytest.mark.parametrize(
    ("facts", "place"),
    [
        ({"kind": "run", "file": "runs/a"}, "runs/a/results.json"),
        ({"kind": "file", "file": "w/a.b.safetensors"}, "w/a.b_results.json"),
        ({"kind": "file", "file": "w/a.pth.tar"}, "w/a_results.json"),
        ({"kind": "released", "file": "x.pth"}, "runs/evaluation/vgg11.json"),
    ],
)
def test_the_default_output_depends_on_the_kind_of_weights(facts, place):
    assert by_config.default_output(Weights("vgg11", **facts)) == Path(place)


def test_the_first_line_names_model_data_and_weights(tmp_path, weights, capsys):
    config = noise_config()
    config.model = "vgg11"
    one(config, str(tmp_path / "r.json"))
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("vgg11, 1,806 parameters, float32 on 2 x cpu; 22 images of 6 classes (")
    assert "weights: " in first


def test_weights_of_another_model_are_refused_before_they_are_loaded(tmp_path, weights):
    weights["resnet18"] = Weights("vgg11")
    with pytest.raises(InputError, match=r"has weights of vgg11, not of resnet18; give its --co"):
        one(output=str(tmp_path / "r.json"))
    assert weights["resnet18"].loaded == 0


def test_results_record_the_training_of_the_weights_not_of_the_config(tmp_path, weights):
    trained = noise_config().to_dict() | {"num_epochs": 3, "seed": 5, "dtype": "bfloat16"}
    trained["data"] = trained["data"] | {"augmentation": "random_shift", "crop_size": 12}
    weights["resnet18"] = Weights("resnet18")
    weights["resnet18"].config = trained | {"of_another_version": 1}
    config = one(output=str(tmp_path / "r.json"))["config"]
    assert (config["num_epochs"], config["seed"], config["dtype"]) == (3, 5, "float32")
    assert config["data"]["augmentation"] == "random_shift"
    assert config["data"]["crop_size"] == CROP


def test_results_record_the_options_of_the_weights():
    config = noise_config()
    run = {"kind": "run", "file": "runs/a", "options": {"pool": "binomial3"}}
    for config.pool in ("", "binomial3"):
        checked = check_config(config)
        plan = by_config.make_plan(checked, "resnet18", run, Noise(), Path("r.json"), (), {})
        assert plan.facts["options"] == {"pool": "binomial3"}
    config = checked
    file = {"kind": "file", "options": {"pool_only": False}}
    assert by_config.model_options(config, file) == {"pool_only": False, "pool": "binomial3"}
    with pytest.raises(InputError, match=r"runs/a was trained with the options none, but the con"):
        by_config.model_options(config, {"kind": "run", "file": "runs/a"})


def test_a_model_that_cannot_process_such_crops_is_not_loaded(tmp_path, weights):
    weights["vgg11"] = Weights("vgg11")
    weights["vgg11"].crop = CROP + 1
    with pytest.raises(InputError, match="1 models could not be evaluated: vgg11"):
        several(tmp_path, "vgg11", "resnet18")
    assert (weights["vgg11"].loaded, weights["resnet18"].loaded) == (0, 1)


def test_a_damaged_results_file_is_found_before_the_model_is_loaded(tmp_path, weights):
    (tmp_path / "r.json").write_text('{"model": ')
    with pytest.raises(InputError, match=r"r\.json is truncated, or has no results"):
        one(output=str(tmp_path / "r.json"))
    assert weights["resnet18"].loaded == 0


def test_an_interrupted_evaluation_of_several_models_reports_what_is_kept(
    tmp_path, weights, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(by_config.engine, "run", stop)
    with pytest.raises(KeyboardInterrupt, match=r"kept in .*; the same command continues"):
        several(tmp_path, "vgg11")


def test_results_of_training_are_those_of_eval(tmp_path, weights):
    """The output of `evaluate_config` is not evaluated again by the command."""
    config = noise_config()
    config.model = "vgg11"
    found = Weights("vgg11")
    by_config.evaluate_config(
        found.load_model(),
        config,
        weights=found.description(),
        output=tmp_path / "vgg11.json",
        source=Noise(),
    )
    several(tmp_path, "vgg11")
    assert weights["vgg11"].loaded == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models=resnet18", "--image_indices=0,x"], "--image_indices takes integers such as"),
        (["--models=resnet18", "--weights=nowhere/{model}"], "could not be evaluated: resnet18"),
    ],
)
def test_a_mistake_is_named_in_one_line(flags, message):
    ran = run(*flags)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_command_measures_a_file_and_goes_on(tmp_path):
    config = digits_resnet18_lpf4.get_config()
    weights = tmp_path / "resnet18_lpf4.safetensors"
    save_weights(create_model(config.model, num_classes=10), weights)
    ran = run(f"--weights={weights}", "--worst_case")
    output = tmp_path / "resnet18_lpf4_results.json"
    assert f"written to {output}" in ran.stdout
    assert {"top1", "worst_case"} <= json.loads(output.read_text()).keys()


def test_the_default_run_and_several_models_have_separate_folders():
    assert Path(f"runs/{imagenet.get_config().name}") != by_config.FOLDER


@pytest.mark.parametrize("names", ["bacdef", "abcdef", "uvwxyz"])
def test_a_run_is_evaluated_on_its_classes_in_their_order(tmp_path, weights, capsys, names):
    run_folder = {"kind": "run", "file": str(tmp_path)}
    weights["vgg11"] = Weights("vgg11", **run_folder)
    (tmp_path / "data.json").write_text(json.dumps({"train": {"classes": list(names)}}))
    if names == "bacdef":
        with pytest.raises(InputError, match="1 models could not be evaluated: vgg11"):
            several(tmp_path / "out", "vgg11")
        error = "and the data number their classes differently: 0 is b in one and a in the other"
        assert error in capsys.readouterr().out
    else:
        several(tmp_path / "out", "vgg11")
        assert weights["vgg11"].loaded == 1
