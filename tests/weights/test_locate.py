"""Weights are found by name, path, run or repository."""

import hashlib
import json

import numpy as np
import optax
import pytest
from flax import nnx

from aa_flax import InputError, create_model, save_weights
from aa_flax.runtime import data_mesh
from aa_flax.training.start import model_from_workdir
from aa_flax.training.step import init_state
from aa_flax.weights.building import abstract_model
from aa_flax.weights.checkpoints import Checkpoints
from aa_flax.weights.fit import named_weights, set_weights
from aa_flax.weights.locate import describe, locate
from tests.training import tiny


@pytest.mark.parametrize(
    ("word", "file"),
    [
        (True, "resnet50_lpf4_finetune-cad66808.pth"),
        ("pretrained", "resnet50_lpf4_finetune-cad66808.pth"),
        ("finetuned", "resnet50_lpf4_finetune-cad66808.pth"),
        ("scratch", "resnet50_lpf4-994b528f.pth"),
        ("baseline", "resnet50-0676ba61.pth"),
    ],
)
def test_a_word_is_a_released_file_described_without_downloading_it(word, file):
    weights = locate(word, model="resnet50_lpf4")
    description = weights.description()
    assert description["kind"] == "released"
    assert description["file"] == file
    assert description["sha256"] == file[-12:-4]
    assert description["model"] == weights.name == file.split("_finetune")[0].split("-")[0]
    assert ("BSD" if word == "baseline" else "CC BY-NC-SA") in description["licence"]
    assert json.loads(json.dumps(description)) == description
    assert describe(description) == file


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pretraind", "no file pretraind; did you mean pretrained"),
        ("fintuned", "did you mean finetuned"),
        ("basline", "did you mean baseline"),
        ("nowhere.pth", r"no file nowhere\.pth$"),
        ("s3://bucket/w.pth", "is an address"),
        ("", "weights are True, one of pretrained, .*; got ''"),
        (3, "got 3"),
        ({"a": 1}, "got a mapping, which load_torch_state_dict loads into a model"),
    ],
)
def test_a_source_that_is_no_weights_is_one_error(source, message):
    with pytest.raises(InputError, match=message):
        locate(source, model="resnet18")
    if source:
        with pytest.raises(InputError, match=message):
            create_model("resnet18", pretrained=source)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match=f"no run in {tmp_path}"):
        locate(tmp_path, model="resnet18")


def test_a_folder_of_weights_without_a_run_names_them(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoints in .*: give .*/model\.safetensors$"):
        locate(tmp_path, model="resnet18")


def test_a_file_is_described_by_its_hash_and_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    model = abstract_model("mobilenet_v2", 3)
    set_weights(model, {n: np.zeros(v.shape, np.float32) for n, v in named_weights(model).items()})
    save_weights(model, path, training="digits", epoch="7")
    weights = locate(str(path), model="resnet18")
    assert weights.name == "mobilenet_v2"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.description() == {
        "kind": "file",
        "model": "mobilenet_v2",
        "training": "digits",
        "epoch": 7,
        "file": str(path),
        "sha256": digest,
    }
    assert describe(weights.description()) == f"{path} (epoch 7, SHA-256 {digest[:8]})"
    with pytest.raises(InputError, match="has weights of mobilenet_v2, not of resnet18"):
        create_model("resnet18", pretrained=path)
    save_weights(model, path, training="other")
    with pytest.raises(InputError, match="has changed since it was described"):
        weights.load({})


def test_a_run_is_a_model_with_its_best_weights(tmp_path):
    tiny.register()
    models = {step: create_model("tiny", num_classes=3, rngs=nnx.Rngs(step)) for step in (1, 2)}
    data = {"crop_size": 40, "resize_size": 0}
    config = {"model": "tiny", "dtype": "bfloat16", "data": data}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, model in models.items():
            state = init_state(model, optax.sgd(0.1), data_mesh())
            state = state._replace(step=state.step + step)
            checkpoints.save(state, epoch=step, top1=90 - step, num_classes=3, config=config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = locate(str(tmp_path), model="resnet18")
    description = weights.description()
    assert len(description.pop("crc32")) == 8
    facts = {"kind": "run", "model": "tiny", "file": str(tmp_path), "epoch": 1, "step": 1}
    assert description == facts
    assert describe(description) == f"{tmp_path} (epoch 1, step 1)"
    best = weights.load_model()
    assert best.name == "tiny"
    assert (best.fc.kernel[...] == models[1].fc.kernel[...]).all()
    assert best(np.zeros((1, 8, 8, 3), np.float32)).dtype == "bfloat16"
    other = create_model("tiny", pretrained=tmp_path, num_classes=5)
    assert (other.conv.kernel[...] == models[1].conv.kernel[...]).all()
    assert other.fc.kernel.shape == (4, 5)
    assert (other.config.input_size, other.config.resize_size) == (40, 0)  # the data of its test
    with pytest.raises(InputError, match="has weights of tiny, not of resnet18"):
        create_model("resnet18", pretrained=tmp_path)
    second, sentence = model_from_workdir(tmp_path, 2)
    assert (second.fc.kernel[...] == models[2].fc.kernel[...]).all()
    assert sentence == f"{tmp_path} (epoch 2, step 2)"
