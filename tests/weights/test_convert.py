"""The command `python -m aa_flax.convert`, by its arguments."""

import json
import os
import shutil

import numpy as np
import optax
import pytest
import torch
from flax import nnx

import aa_flax.convert
from aa_flax import InputError, create_model, save_weights
from aa_flax.models import registry
from aa_flax.runtime import data_mesh
from aa_flax.training.step import init_state
from aa_flax.weights.building import abstract_model
from aa_flax.weights.checkpoints import Checkpoints
from aa_flax.weights.convert_files import num_parameters
from aa_flax.weights.fit import named_weights, set_weights
from aa_flax.weights.read import read_metadata, read_weights
from benchmarks.reference import assert_same_model, reference_model, torchvision
from tests.weights.conftest import NAME, TINY

LARGE = ("resnet101", "resnet152", "densenet161", "densenet169", "densenet201")


@pytest.fixture
def convert():
    return lambda *arguments: aa_flax.convert.convert([*map(str, arguments)])


def test_a_released_file_becomes_safetensors_with_its_origin(
    convert, released, released_folder, reference, tmp_path, capsys
):
    output = tmp_path / "new" / "w.safetensors"
    assert convert(released_folder / released.filename, output) == 0
    assert capsys.readouterr().out == f"{NAME}: written to {output}\n"
    metadata = read_metadata(output)
    assert metadata["model"] == NAME
    assert metadata["source"] == released.filename
    assert metadata["sha256"].startswith(released.sha256_prefix)
    assert "CC BY-NC-SA 4.0" in metadata["licence"]
    assert_same_model(create_model(NAME, pretrained=output), reference, (40, 37))


@pytest.mark.parametrize("name", [NAME, "mobilenet_v2"])
def test_the_way_back_loads_strictly_in_the_original_and_in_torchvision(name, convert, tmp_path):
    weights, output = tmp_path / "w.safetensors", tmp_path / "w.pth"
    save_weights(create_model(name, num_classes=10), weights)
    convert("--to-torch", weights, output)
    content = torch.load(output, weights_only=True)
    baseline = name == "mobilenet_v2"
    reference = torchvision.models.mobilenet_v2(num_classes=10) if baseline else None
    reference = reference or reference_model(name, num_classes=10)
    reference.load_state_dict(content if baseline else content["state_dict"], strict=True)
    before = read_weights(weights).arrays
    found = named_weights(create_model(name, pretrained=output))
    assert all(np.array_equal(found[key], array) for key, array in before.items())


def test_a_whole_folder_is_converted_once_and_faults_are_listed(
    convert, released, released_folder, tmp_path, monkeypatch, capsys
):
    folder, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(released_folder, folder)
    wrong = released._replace(model="mobilenet_v2_lpf3", filename="mobilenet_v2_lpf3-00000000.pth")
    shutil.copy(folder / released.filename, folder / wrong.filename)
    absent = released._replace(filename="absent-00000000.pth")
    monkeypatch.setattr(registry, "released_weights", lambda: (released, wrong, absent))
    assert convert("--all", folder, output) == 1
    printed = capsys.readouterr().out
    assert "3,504,872  converted" in printed
    assert f"SHA-256 begins with {released.sha256_prefix}" not in printed
    assert "1 of 3 files are converted, 1 failed, 1 are not in the folder" in printed

    (folder / wrong.filename).unlink()
    written = (output / released.filename).with_suffix(".safetensors")
    before = written.stat().st_mtime_ns
    assert convert("--all", folder, output) == 0
    assert "already done" in capsys.readouterr().out
    assert written.stat().st_mtime_ns == before


def test_a_file_with_another_hash_is_refused(convert, released, released_folder, tmp_path):
    path = tmp_path / released.filename
    path.write_bytes((released_folder / released.filename).read_bytes() + b" ")
    with pytest.raises(InputError, match=f"begins with .* not {released.sha256_prefix}"):
        convert(path, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_weights_for_another_filter_size_name_the_model_they_fit(
    convert, released, released_folder, tmp_path
):
    with pytest.raises(InputError, match=r"for mobilenet_v2_lpf4 \(filter size 4\), the model is"):
        convert(
            released_folder / released.filename,
            tmp_path / "w.safetensors",
            "--model=mobilenet_v2_lpf3",
        )


def test_the_model_follows_from_a_checkpoints_arch_or_a_files_name(convert, reference, tmp_path):
    content = {"arch": NAME, "state_dict": reference.state_dict()}
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    convert(tmp_path / "checkpoint.pth.tar", tmp_path / "a.safetensors")
    torch.save(reference.state_dict(), tmp_path / f"{NAME}_mine.pth")
    convert(tmp_path / f"{NAME}_mine.pth", tmp_path / "b.safetensors")
    assert read_metadata(tmp_path / "b.safetensors")["model"] == NAME
    torch.save(reference.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(
        InputError, match=r"mine\.pth does not say which model .* give --model NAME"
    ):
        convert(tmp_path / "mine.pth", tmp_path / "c.safetensors")
    torch.save({"a": torch.ones(3)}, tmp_path / f"{NAME}.pth")
    with pytest.raises(InputError, match=r"no name is one of the model's, found are a$"):
        convert(tmp_path / f"{NAME}.pth", tmp_path / "c.safetensors")


def test_a_runs_checkpoints_become_weights_of_either_kind(convert, tmp_path):
    models = {step: create_model(TINY, num_classes=10, rngs=nnx.Rngs(step)) for step in (1, 2)}
    data = {"crop_size": 40, "resize_size": 0}
    config = {"model": TINY, "dtype": "float32", "data": data}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        for step, model in models.items():
            state = init_state(model, optax.sgd(0.1), data_mesh())
            state = state._replace(step=state.step + step)
            checkpoints.save(state, epoch=step, top1=90 - step, num_classes=10, config=config)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    convert(tmp_path / "run", tmp_path / "best.safetensors")
    convert(tmp_path / "run", tmp_path / "second.pth", "--to-torch", "--step=2")
    for step, name in ((1, "best.safetensors"), (2, "second.pth")):
        found = create_model(TINY, pretrained=tmp_path / name).classifier.kernel[...]
        np.testing.assert_array_equal(found, models[step].classifier.kernel[...])
    assert create_model(TINY, pretrained=tmp_path / "best.safetensors").config.input_size == 40
    with pytest.raises(InputError, match=r"no checkpoint of step 3 .* there are 1, 2"):
        convert(tmp_path / "run", tmp_path / "third.pth", "--step=3")
    with pytest.raises(InputError, match=f"no run in {tmp_path}"):
        convert(tmp_path, tmp_path / "third.pth")
    with pytest.raises(InputError, match=r"options of .*run are known, so leave it out"):
        convert(tmp_path / "run", tmp_path / "third.pth", "--option=width_mult=1")


def test_options_are_given_where_a_torch_file_cannot_contain_them(convert, tmp_path):
    first, torchs, again = (tmp_path / name for name in ("a.safetensors", "a.pth", "b.safetensors"))
    options = {"pool": "binomial3", "pool_only": False}
    model, rng = abstract_model("resnet18", 3, **options), np.random.default_rng(0)
    arrays = {name: rng.random(v.shape, np.float32) for name, v in named_weights(model).items()}
    set_weights(model, arrays)
    save_weights(model, first)
    convert("--to-torch", first, torchs)
    given = ["--option=pool_only=False", "--option=pool=binomial3"]
    with pytest.raises(InputError, match="pool_only=False needs an antialiased model"):
        convert(torchs, again, "--model=resnet18", given[0])
    convert(torchs, again, "--model=resnet18", *given)
    assert json.loads(read_metadata(again)["options"]) == options
    before, after = read_weights(first).arrays, read_weights(again).arrays
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[name], array) for name, array in before.items())
    with pytest.raises(InputError, match=r"--option is NAME=VALUE, e\.g\. .*; got 'x'"):
        convert(torchs, again, "--option=x")
    with pytest.raises(InputError, match="--all converts released files: without"):
        convert("--all", tmp_path, tmp_path, *given)


def test_safetensors_without_a_model_need_a_name(convert, tmp_path):
    from safetensors.numpy import save_file

    save_file({"fc.bias": np.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="does not say which model"):
        convert("--to-torch", tmp_path / "w.safetensors", tmp_path / "w.pth")


def test_folders_without_released_files_are_named(convert, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        convert("--all", tmp_path / "absent", tmp_path)
    with pytest.raises(InputError, match="no released file in"):
        convert("--all", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "released",
    [
        pytest.param(r, id=r.model, marks=pytest.mark.slow if r.model in LARGE else ())
        for r in registry.released_weights()[:23]
    ],
)
def test_every_model_has_the_published_number_of_parameters(released):
    assert num_parameters(abstract_model(released.model, 1000)) == released.parameters
    assert num_parameters(abstract_model(f"{released.model}_lpf4", 1000)) == released.parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in.pth", "out.pth"), r"out\.pth must be safetensors; .* or give --to-torch"),
        (
            ("--to-torch", "in.pth", "out.safetensors"),
            r"must be a torch file; name it e\.g\. \.pth",
        ),
        (("in.pth", "folder"), "folder is a directory; give the name of a file"),
        (("in.pth", "file/out.safetensors"), "file is a file, but a directory is needed"),
        (("in.pth", "gs://bucket/out.safetensors"), "gs://bucket/out.safetensors is an address"),
        (("in.pth", "out.safetensors"), r"no file in\.pth"),
        (("--to-torch", "in.pth", "pipe"), "pipe is a device or a pipe; give the name of a file"),
        (("--to-torch", "./file", "file"), "file is the source itself; give another name"),
        (("--to-torch", "file#ema", "link"), "link is the source itself; give another name"),
        (("in.pth", "out.safetensors", "--step=3"), "--step is of a run's folder"),
        (("baseline", "out.safetensors"), "baseline: of which model. Give --model NAME"),
        (("baselin", "out.safetensors"), "no file baselin; did you mean baseline"),
        (("--all", "folder", "file"), "file is a file; with --all it must be a folder"),
    ],
)
def test_mistakes_are_reported_before_any_work(
    arguments, message, convert, released, released_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(released_folder, "folder")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo("pipe")
    with pytest.raises(InputError, match=message):
        convert(*arguments)
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_of_this_package_is_not_converted_to_itself(convert, tmp_path):
    from safetensors.numpy import save_file

    metadata = {"format": "aa_flax", "model": NAME}
    save_file({"conv.kernel": np.ones(3)}, tmp_path / "w.safetensors", metadata)
    with pytest.raises(InputError, match=f"this package already, of {NAME}; .* give --to-torch"):
        convert(tmp_path / "w.safetensors", tmp_path / "o.safetensors")


def test_averaged_weights_and_torchs_safetensors_are_converted(convert, reference, tmp_path):
    from safetensors.torch import save_file

    save_file(
        {f"model.{k}": v for k, v in reference.state_dict().items()}, tmp_path / f"{NAME}.bin"
    )
    convert(tmp_path / f"{NAME}.bin", tmp_path / "a.safetensors")
    averaged = {f"module.{k}": v + 0 for k, v in reference.state_dict().items()}
    averaged["module.classifier.0.bias"] += 1
    torch.save({"model": reference.state_dict(), "model_ema": averaged}, tmp_path / "c.pth")
    convert(f"{tmp_path}/c.pth#ema", tmp_path / "b.safetensors", f"--model={NAME}")
    plain, ema = (read_weights(tmp_path / f"{file}.safetensors").arrays for file in "ab")
    bias = reference.state_dict()["classifier.0.bias"].numpy()
    np.testing.assert_array_equal(plain["classifier.bias"], bias)
    np.testing.assert_array_equal(ema["classifier.bias"], bias + 1)
