"""Weights of the Hugging Face hub, from a mock server."""

import hashlib
import json

import numpy as np
import pytest

from aa_flax import InputError, create_model, save_weights
from aa_flax.models.model_config import ModelConfig
from aa_flax.weights import hub
from aa_flax.weights.locate import describe, locate
from tests.hub_server import COMMIT

constants = pytest.importorskip("huggingface_hub.constants")

MODEL = "mobilenet_v2_lpf2"
CONFIG = {
    "architecture": "resnetblur50",
    "pretrained_cfg": {
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "crop_pct": 0.875,
        "test_crop_pct": 0.95,
        "license": "apache-2.0",
    },
}


@pytest.fixture(scope="module")
def small():
    return create_model(MODEL, num_classes=3, width_mult=0.0625)


@pytest.fixture
def stored(small, hub_files, tmp_path) -> bytes:
    save_weights(small, tmp_path / "w.safetensors")
    hub_files["model.safetensors"] = (tmp_path / "w.safetensors").read_bytes()
    hub_files["config.json"] = json.dumps(CONFIG).encode()
    return hub_files["model.safetensors"]


def test_a_name_with_revision_and_hash_loads_the_weights_and_their_config(small, stored):
    digest = hashlib.sha256(stored).hexdigest()
    name = f"hf-hub:me/net@v1#sha256={digest[:12]}"
    model = create_model(MODEL, pretrained=name, width_mult=0.0625)
    kernel = small.blocks[2].project.kernel[...]
    np.testing.assert_array_equal(model.blocks[2].project.kernel[...], kernel)
    assert model.config == ModelConfig(288, 303, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    facts = (model.config.weights, model.config.sha256, model.config.licence)
    assert facts == (f"hf-hub:me/net@{COMMIT}", digest, "apache-2.0")
    description = locate("hf-hub:me/net", model=MODEL).description()
    assert description["kind"] == "hub"
    assert describe(description) == f"hf-hub:me/net@{COMMIT} (SHA-256 {digest[:8]})"


def test_a_file_with_another_hash_is_refused(stored):
    with pytest.raises(InputError, match=r"SHA-256 begins with .{8}, not 0{8}; correct it"):
        locate("hf-hub:me/net#sha256=00000000", model=MODEL).load({})


def test_torchs_file_is_used_where_there_is_no_other(hub_files):
    hub_files["pytorch_model.bin"] = b"weights"
    found = hub.hub_file(hub.parse_hub_name(f"hf-hub:me/net@{COMMIT}"))
    assert found.path.read_bytes() == b"weights"
    assert (found.revision, found.images, found.licence) == (COMMIT, {}, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:me/net", "hf-hub:me/net contains none of model.safetensors, pytorch_model.bin"),
        (
            "hf-hub:you/net",
            "hf-hub:you/net could not be downloaded: .* by other means and give its path",
        ),
        ("hf-hub:net", "weights on the hub are hf-hub:OWNER/NAME, followed by @REVISION and #sha"),
        ("hf-hub:../net", "weights on the hub are hf-hub:OWNER/NAME"),
        ("hf-hub:me/net@../../v1", "weights on the hub are hf-hub:OWNER/NAME"),
        ("hf-hub:me/net#sha256=12", r"8 to 64 digits\) if .*; got hf-hub:me/net#sha256=12"),
    ],
)
def test_a_name_that_the_hub_does_not_have_is_one_error(hub_files, name, message):
    with pytest.raises(InputError, match=message):
        locate(name, model=MODEL).description()


def test_a_missing_connection_is_one_error(hub_files, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="could not be downloaded"):
        locate("hf-hub:me/net", model=MODEL).description()


def test_published_weights_of_timms_models_are_those_of_the_hub():
    weights = locate(True, model="resnetblur50")
    assert weights.source == hub.HubName("timm/resnetblur50.bt_in1k", None, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"no JSON", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", r"must be a mapping, got \[1\]"),
        (b'{"pretrained_cfg": 5}', "pretrained_cfg: must be a mapping, got 5"),
        (b'{"pretrained_cfg": {"license": [1]}}', r"license must be a text, got \[1\]"),
        (b'{"pretrained_cfg": {"std": [0, 0, 0]}}', "std must be a number from .*, got 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_file_field_and_value(
    config, message, stored, hub_files
):
    hub_files["config.json"] = config
    with pytest.raises(InputError, match=rf"^hf-hub:me/net: config\.json: .*{message}"):
        locate("hf-hub:me/net", model=MODEL).description()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"mean": ["a", "b", "c"]}, "mean must be a number .*, got 'a'"),
        ({"mean": [0.5]}, r"mean must be three numbers, one a channel, got \[0\.5\]"),
        ({"input_size": 5, "crop_pct": 0.9}, r"input_size must be \[3, SIDE, SIDE\], got 5"),
        ({"input_size": [3, 224, 160], "crop_pct": 0.9}, "input_size must be"),
        ({"input_size": [3, 1e400, 1e400], "crop_pct": 1}, "input_size must be .*, got inf"),
        ({"input_size": [3, -5, -5], "crop_pct": 1}, "input_size must be .*, got -5"),
        ({"input_size": [3, 9, 9], "crop_pct": "x"}, "crop_pct must be .*, got 'x'"),
    ],
)
def test_facts_that_make_no_sense_are_refused(facts, message):
    with pytest.raises(InputError, match=message):
        hub.image_config(facts)


def test_facts_about_other_things_change_nothing():
    assert hub.image_config({"mean": None, "interpolation": "lanczos", "crop_pct": 0.9}) == {}
