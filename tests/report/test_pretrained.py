"""Models as folders and repositories of the Hub, with a local server."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from aa_flax import (
    InputError,
    create_model,
    evaluate,
    from_pretrained,
    push_to_hub,
    save_pretrained,
)
from aa_flax.models.model_config import ModelConfig
from aa_flax.report.pretrained import hub_config
from aa_flax.weights.hub import image_config
from tests.evaluation.tiny import CLASSES, Noise
from tests.hub_server import COMMIT, Hub

NAME = "mobilenet_v2_lpf2"
IMAGES = ModelConfig(112, 129, "bicubic", (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


@pytest.fixture
def model():
    model = create_model(NAME, num_classes=CLASSES, width_mult=0.0625)
    model.config = replace(IMAGES, class_names=tuple("abcdef"))
    return model


def assert_same(found, model):
    assert found.name == model.name
    assert found.config == model.config  # sizes, interpolation and normalization
    assert found.config.class_names == model.config.class_names
    pairs = (nnx.state(m, (nnx.Param, nnx.BatchStat)) for m in (found, model))
    jax.tree.map(np.testing.assert_array_equal, *pairs)


def test_a_folder_gives_the_model_back_bit_for_bit(model, tmp_path):
    folder = save_pretrained(model, tmp_path / "deep/model", licence="CC BY 4.0")
    found = from_pretrained(folder)
    assert_same(found, model)
    assert found.config.licence == "CC BY 4.0"
    assert from_pretrained(folder, num_classes=2).num_classes == 2
    again = save_pretrained(found, tmp_path / "again")  # whose weights are at a path
    assert str(tmp_path) not in (again / "README.md").read_text()


def test_what_is_pushed_is_loaded_by_the_name_that_is_returned(model, hub_files):
    name = push_to_hub(model, "me/net", licence="apache-2.0")
    assert name.startswith(f"hf-hub:me/net@{COMMIT}#sha256=")
    assert sorted(hub_files) == ["README.md", "config.json", "model.safetensors"]
    assert b"aa_flax.from_pretrained('me/net')" in hub_files["README.md"]
    assert_same(from_pretrained(name), model)
    assert_same(from_pretrained("me/net"), model)
    with pytest.raises(InputError, match="SHA-256 begins with"):
        from_pretrained("me/net#sha256=00000000")


@pytest.mark.parametrize("size", [(224, 256), (288, 303), (299, 333), (64, 0), (7, 65_000)])
def test_every_image_size_survives(size, model, tmp_path):
    model.config = replace(IMAGES, input_size=size[0], resize_size=size[1])
    assert from_pretrained(save_pretrained(model, tmp_path, licence="mit")).config == model.config


def test_sizes_are_not_rounded_in_the_format_of_the_hub(model):
    for side in range(64, 420, 7):
        model.config = replace(IMAGES, input_size=side, resize_size=side * 8 // 7 + side % 5)
        found = image_config(hub_config(model, "mit")["pretrained_cfg"])
        assert (found["input_size"], found["resize_size"]) == (side, model.config.resize_size)


def test_the_card_has_the_licence_the_numbers_and_the_figure(model, tmp_path):
    results = tmp_path / "results.json"
    options = {"crop_size": 40, "image_size": 48, "shift_range": 3, "passes": 1}
    small = create_model("resnet18_lpf4", num_classes=CLASSES)
    evaluate(small, Noise(48), ["shift", "diagonal"], output=results, **options)
    folder = save_pretrained(small, tmp_path / "model", licence="Apache-2.0", results=results)
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlicense: "apache-2.0"\nlibrary_name: "aa_flax"\n')
    consistency = json.loads(results.read_text())["shift"]["consistency"]
    assert f"{consistency:.0f}" in card
    assert "| model | consistency | consistent and correct |" in card
    assert (folder / "shifts.png").stat().st_size > 1000
    with pytest.raises(InputError, match=f"has results of resnet18_lpf4; give those of {NAME}"):
        save_pretrained(model, tmp_path / "other", licence="mit", results=results)


def test_torchs_file_has_torchvisions_names(model, tmp_path):
    torch = pytest.importorskip("torch")
    folder = save_pretrained(model, tmp_path, licence="mit", torch=True)
    state = torch.load(folder / "torch.pth", weights_only=True)
    assert "features.0.0.weight" in state
    model.config = create_model(NAME, num_classes=1, width_mult=0.0625).config
    assert_same(create_model(NAME, pretrained=folder / "torch.pth", width_mult=0.0625), model)


def test_a_model_without_a_licence_is_not_shared(model, tmp_path):
    with pytest.raises(InputError, match="the licence of these weights of mobilenet_v2_lpf2 is"):
        save_pretrained(model, tmp_path)
    with pytest.raises(InputError, match="saves a classifier of create_model, got a Linear"):
        save_pretrained(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tmp_path, licence="mit")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", "names no architecture"),
        ("[]", "config.json: must be a mapping"),
        ("{", "config.json: not JSON"),
        ('{"architecture": "resnet19"}', "unknown model 'resnet19'"),
        ('{"architecture": "resnet18", "aa_flax": {"options": 3}}', "options must be a mapping"),
    ],
)
def test_a_damaged_folder_is_one_error(config, message, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=message):
        from_pretrained(tmp_path)


def test_names_that_cannot_be_are_refused(model, hub_files, tmp_path):
    with pytest.raises(InputError, match=r"hf-hub:OWNER/NAME, followed by .*; got hf-hub:nowhere"):
        from_pretrained("nowhere")
    with pytest.raises(InputError, match=r"has no config\.json"):
        from_pretrained("me/net")
    with pytest.raises(InputError, match="push_to_hub writes to OWNER/NAME, got me/net@v1"):
        push_to_hub(model, "me/net@v1", licence="mit")


def test_a_hub_that_is_out_of_reach_is_one_error(model, hub_files, monkeypatch):
    monkeypatch.setattr(Hub, "do_POST", lambda self: self.send_error(403))
    with pytest.raises(InputError, match=r"hf-hub:me/net could not be written: .*save_pretrained"):
        push_to_hub(model, "me/net", licence="mit")
