"""Every model compared with stored logits of the original, without torch."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from aa_flax import create_model, load_torch_state_dict, save_weights
from aa_flax.models import registry
from aa_flax.weights.building import abstract_model
from aa_flax.weights.state_dicts import torch_filters, torch_slots
from tests.golden import LOGITS, NUM_CLASSES, golden_image, golden_weights

GOLDEN = json.loads(LOGITS.read_text())
QUICK = ("alexnet_lpf4", "vgg11_bn", "resnet18_lpf4", "densenet121_lpf4", "mobilenet_v2_lpf4")


def test_all_models_have_golden_logits():
    bases = [name for name in GOLDEN if "_lpf" not in name]
    assert bases == list(filter(registry.has_reference, registry.base_names()))
    assert {f"{base}_lpf4" for base in bases} == GOLDEN.keys() - set(bases)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in GOLDEN]
)
def test_logits_are_the_originals(name, tmp_path):
    weights = abstract_model(name, NUM_CLASSES)
    arrays = golden_weights({key: slot.torch_shape for key, slot in torch_slots(weights).items()})
    arrays |= torch_filters(weights)
    save_weights(load_torch_state_dict(weights, arrays), tmp_path / "w.safetensors")
    model = create_model(name, pretrained=tmp_path / "w.safetensors")

    graphdef, state = nnx.split(model)
    logits = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, golden_image())
    expected = np.array(GOLDEN[name])
    assert np.abs(logits[0] - expected).max() <= 1e-5 * np.abs(expected).max()
