"""State dicts as trainers write them, in memory: no model is needed to find and read one."""

from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aa_flax import InputError, create_model, load_torch_state_dict, to_torch_state_dict
from aa_flax.weights.state_dicts import as_float32, find_state_dict, match_names, todays_name
from benchmarks.reference import reference_model

WEIGHTS = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}
OTHERS = {
    "epoch": 3,
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    "lr_scheduler": {"weight": torch.ones(2)},
    "best_acc1": torch.tensor(50.0),
    "metrics": {"confusion": torch.ones(3, 3)},
}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        OrderedDict(WEIGHTS),
        *({**OTHERS, key: WEIGHTS} for key in ("state_dict", "model", "model_state_dict", "net")),
        {"checkpoint": {"model": {"state_dict": WEIGHTS}}},
    ],
)
def test_weights_are_found_in_any_wrapper(content):
    assert find_state_dict(content, "x") == (WEIGHTS, "")


@pytest.mark.parametrize(
    "key", ["model_ema", "state_dict_ema", "ema_state_dict", "ema", "swa_model"]
)
def test_averaged_weights_next_to_plain_ones_are_named_and_can_be_chosen(key):
    averaged = {f"module.{name}": tensor + 1 for name, tensor in WEIGHTS.items()}
    content = {**OTHERS, "model": WEIGHTS, key: {"n_averaged": torch.tensor(4), **averaged}}
    assert find_state_dict(content, "x") == (WEIGHTS, key)
    assert find_state_dict(content, "x", ema=True) == (averaged, "")


def test_averaged_weights_under_a_prefix_are_kept_apart():
    averaged = {f"ema_model.module.{name}": tensor + 1 for name, tensor in WEIGHTS.items()}
    plain = {f"model.{name}": tensor for name, tensor in WEIGHTS.items()}
    content = {"state_dict": {**plain, **averaged, "ema_model.n_averaged": torch.tensor(3)}}
    assert find_state_dict(content, "x") == (plain, "state_dict.ema_model")
    assert find_state_dict(content, "x", ema=True) == (averaged, "")


def test_the_counter_of_an_averaged_model_is_no_averaged_copy_of_it():
    averaged = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    content = {"n_averaged": torch.tensor(3), **averaged}
    assert find_state_dict(content, "x") == (averaged, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "contains no state dict .*: it is empty"),
        ([1], "it is a list"),
        ({0: torch.ones(2)}, "whose keys are not all names, e.g. 0"),
        ({"epoch": 3}, r"a mapping of epoch \(int\)"),
        ({**WEIGHTS, "a": torch.ones(1), "epoch": 3}, r"of tensors, but for epoch \(int\)$"),
        ({"generator": WEIGHTS, "critic": WEIGHTS}, r"several state dicts \(generator, critic\)"),
    ],
)
def test_content_without_weights_is_described(content, message):
    with pytest.raises(InputError, match=message):
        find_state_dict(content, "x.pth")


def test_averaged_weights_that_are_not_there_are_an_error():
    with pytest.raises(InputError, match="contains no EMA weights"):
        find_state_dict({"model": WEIGHTS}, "x.pth", ema=True)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.",
        "net.",
        "model.backbone.",
        "a.module.",
    ],
)
def test_a_prefix_of_all_names_is_removed(prefix):
    given = {f"{prefix}{name}": name for name in ("features.0.weight", "features.0.bias")}
    expected = ["features.0.weight", "features.0.bias", "classifier.weight"]
    assert match_names(given, expected, "x") == {name: name for name in given.values()}


def test_an_unexpected_name_stays_as_spelled():
    given = {"model.fc.weight": 1, "model.module.loss.weight": 2}
    expected = {"fc.weight": 1, "model.module.loss.weight": 2}
    assert match_names(given, ["fc.weight", "fc.bias"], "x") == expected


def test_a_prefix_that_is_a_part_of_the_model_stays():
    trunk = {"features.0.weight": 1, "features.3.module.weight": 2}
    found = match_names(trunk, ["features.0.weight", "features.3.weight", "fc.weight"], "x")
    assert found == {"features.0.weight": 1, "features.3.weight": 2}


def test_a_tensor_under_two_spellings_is_an_error_that_names_both():
    given = {"conv1.weight": 1, "bn1.weight": 2, "module.conv1.weight": 3}
    with pytest.raises(InputError, match=r"conv1\.weight and module\.conv1\.weight"):
        match_names(given, ["conv1.weight", "bn1.weight"], "x")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        torch.tensor([1.5, -2.0], dtype=torch.float16),
        torch.tensor([1.5, -2.0], dtype=torch.float64),
        torch.nn.Parameter(torch.tensor([1.5, -2.0])),
        np.array([1.5, -2.0]),
        jnp.array([1.5, -2.0], jnp.bfloat16),
        torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
    ],
)
def test_floats_of_any_width_and_owner_are_read_as_float32(tensor):
    array = as_float32({"a": tensor}, "x")["a"]
    assert array.dtype == np.float32
    assert array.tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, device="meta"), "a has no values to read"),
        (torch.ones(2, dtype=torch.complex64), "a is of type complex64"),
        (np.array([object()]), "a is of type object"),
    ],
)
def test_tensors_that_are_not_real_numbers_are_refused(tensor, message):
    with pytest.raises(InputError, match=f"x: {message}"):
        as_float32({"a": tensor}, "x")


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("module.conv1.weight", "conv1.weight"),
        ("features.module.0.weight", "features.0.weight"),
        (
            "features.denseblock1.denselayer2.norm.1.weight",
            "features.denseblock1.denselayer2.norm1.weight",
        ),
        (
            "module.features.denseblock4.denselayer16.conv.2.weight",
            "features.denseblock4.denselayer16.conv2.weight",
        ),
        ("features.transition1.norm.weight", "features.transition1.norm.weight"),
        ("features.1.conv.1.weight", "features.1.conv.1.weight"),
    ],
)
def test_old_names_become_todays(name, today):
    assert todays_name(name) == today


def test_old_names_of_a_densenet_load():
    weights = {k: v.numpy() for k, v in reference_model("densenet121").state_dict().items()}
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for name, value in weights.items()
        if "num_batches" not in name
    }
    found = to_torch_state_dict(load_torch_state_dict(create_model("densenet121"), old))
    assert all(np.array_equal(found[n], v) for n, v in weights.items() if "num_batches" not in n)
