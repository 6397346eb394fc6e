"""Changed state dicts are loaded right or refused in one line; seeds are fixed."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aa_flax import InputError, load_torch_state_dict, to_torch_state_dict
from aa_flax.weights.building import abstract_model
from benchmarks.reference import reference_model

NAME, OPTIONS = "mobilenet_v2_lpf4", {"width_mult": 0.1}
MODEL = reference_model(NAME, num_classes=5, **OPTIONS)
STATE = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
MODEL = abstract_model(NAME, 5, **OPTIONS)
OTHER = abstract_model("mobilenet_v2", 5, **OPTIONS)
NAMES = [name for name in STATE if "num_batches" not in name]


def renamed(state, key):
    return {(f"{k}_old" if k == key else k): v for k, v in state.items()}


def dropped(state, key):
    return {k: v for k, v in state.items() if k != key}


def doubled(state, key):
    return {**state, f"module.{key}": state[key]}


def transposed(state, key):
    return {**state, key: state[key][None]}


def added(state, key):
    return {**state, f"{key}.more": torch.ones(2)}


def as_integers(state, key):
    return {**state, key: state[key].int()}


def cut(state, key):
    return {**state, key: torch.cat([state[key], state[key]])}


def prefixed(prefix):
    return lambda state, _: {f"{prefix}{k}": v for k, v in state.items()}


def wrapped(state, _):
    return {"model": state, "epoch": 3}


def cast(state, _):
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


def as_arrays(state, _):
    return {k: v.numpy() for k, v in state.items()}


def reversed_order(state, _):
    return dict(reversed(state.items()))


def without_counters(state, _):
    return {k: v for k, v in state.items() if "num_batches" not in k}


HARMLESS = [prefixed("module."), prefixed("model."), prefixed("_orig_mod."), cast]
HARMLESS += [reversed_order, without_counters]
WRONG = [renamed, dropped, doubled, transposed, added, as_integers, cut]


@st.composite
def changed_states(draw):
    """Draws a state dict, and whether it is still the model's."""
    state, right = STATE, True
    for change in draw(st.lists(st.sampled_from(WRONG), max_size=1)):
        state, right = change(state, draw(st.sampled_from(NAMES))), False
    for change in draw(st.lists(st.sampled_from(HARMLESS), max_size=3, unique=True)):
        state = change(state, "")
    if draw(st.booleans()):
        state = as_arrays(state, "")
    return wrapped(state, "") if draw(st.booleans()) else state, right


def check(changed):
    state, right = changed
    if not right:
        with pytest.raises(InputError) as error:
            load_torch_state_dict(MODEL, state)
        assert "\n" not in str(error.value)
        return
    found = to_torch_state_dict(load_torch_state_dict(MODEL, state))
    for name in NAMES:
        np.testing.assert_array_equal(found[name], STATE[name].numpy(), err_msg=name)


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(changed_states())
def test_a_changed_state_dict_is_loaded_right_or_refused(changed):
    check(changed)


@pytest.mark.slow
@settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(changed_states())
def test_many_changed_state_dicts_are_loaded_right_or_refused(changed):
    check(changed)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3) | st.just(torch.ones(2)),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_whatever_else_is_given_is_one_error(content):
    with pytest.raises(InputError):
        load_torch_state_dict(OTHER, content)
