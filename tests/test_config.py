"""Recipes as the commands read them, and the checks of a config."""

import importlib
import inspect
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from aa_flax import InputError, list_models
from aa_flax.cli import recipe_names
from aa_flax.config import Config, check_config, config_fields
from aa_flax.configs import imagenet

NAMES = recipe_names()
PUBLISHED = [name for name in NAMES if not name.startswith(("digits", "imagenet"))]


def module(name):
    return importlib.import_module(f"aa_flax.configs.{name}")


def types(tree, prefix=""):
    """Returns the type of every field by its path; options of the model have any type."""
    found = {}
    for key, value in tree.items():
        if key == "model_options":
            continue
        path = f"{prefix}{key}"
        found |= types(value, f"{path}.") if hasattr(value, "items") else {path: type(value)}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_the_fields_of_the_base_and_its_own_name(name):
    config = module(name).get_config()
    assert types(config) == types(imagenet.get_config())
    assert config.name == name
    assert config.model in list_models()


@pytest.mark.parametrize("name", NAMES)
def test_every_docstring_has_the_command(name):
    assert f"python train.py --config configs/{name}.py" in str(module(name).__doc__)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_baseline_differs_in_the_model_alone(name):
    get_config = module(name).get_config
    if "variant" not in inspect.signature(get_config).parameters:
        pytest.skip("fine-tuning begins with the baseline")
    recipe, baseline = get_config(), get_config("baseline")
    assert baseline.model == baseline.name == name.removesuffix("_lpf4")
    baseline.update({"name": recipe.name, "model": recipe.model})
    assert baseline == recipe
    with pytest.raises(InputError, match="variant 'base' of a recipe; known: baseline"):
        get_config("base")


def changed(**changes):
    """Returns the base recipe with other values, by dotted name."""
    config = Config().to_dict()
    for name, value in changes.items():
        *groups, last = name.split(".")
        group = config
        for part in groups:
            group = group[part]
        group[last] = value
    return config


def test_a_pool_goes_with_a_baseline():
    assert check_config(changed(model="vgg11", pool="binomial3")).pool == "binomial3"
    with pytest.raises(InputError, match="unknown pool 'binomal3'; did you mean binomial3"):
        check_config(changed(model="vgg11", pool="binomal3"))
    with pytest.raises(
        InputError, match=r"BlurPools of vgg11_lpf2; give --config\.model=vgg11 with"
    ):
        check_config(changed(model="vgg11_lpf2", pool="binomial3"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_passes_and_keeps_its_values(name):
    recipe = module(name).get_config()
    config = check_config(recipe, training=True)
    assert config.to_dict() == recipe.to_dict() == json.loads(config.to_json())
    assert check_config(config) == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", 8, r"unknown field 'config\.lr'; did you mean config\.optimizer\.learning_rate\?"),
        (
            "optimizer.learnig_rate",
            1,
            r"unknown field .*did you mean config\.optimizer\.learning_r",
        ),
        ("data.bacth_size", 1, r"did you mean .*batch_size"),
        ("optimizer", 5, r"config\.optimizer is 5; it has to be a group of values"),
        ("batch_size", 0, r"config\.batch_size is 0; it has to be at least 1"),
        ("batch_size", 2.5, r"config\.batch_size is 2\.5; it has to be an integer"),
        ("batch_size", True, r"config\.batch_size is True; it has to be an integer"),
        ("batch_size", "many", r"config\.batch_size is 'many'; it has to be an integer"),
        ("batch_size", 2**31, r"config\.batch_size is 2147483648; it has to be at most 2147483647"),
        ("num_epochs", 0, r"num_epochs is 0; it has to be at least 1"),
        ("max_steps_per_epoch", -1, r"max_steps_per_epoch is -1; it has to be at least 0"),
        ("seed", -1, r"config\.seed is -1; it has to be at least 0"),
        ("batch_stat_groups", 0, r"batch_stat_groups is 0; it has to be at least 1"),
        ("remat", 1, r"config\.remat is 1; it has to be True or False"),
        ("name", "", r'config\.name is ""; .*give it one'),
        ("name", "a\nb", r"config\.name is 'a\\nb'; it has to be one line of text"),
        ("model", "resnet51", r"unknown model 'resnet51'; did you mean resnet50"),
        ("dtype", "bf16", r"unknown config\.dtype 'bf16'; did you mean bfloat16\?"),
        ("init_from", None, r"config\.init_from is None; it has to be text"),
        ("model_options", {"a": object()}, r"model_options .* cannot be stored as JSON"),
        ("optimizer.learning_rate", -1, r"learning_rate is -1\.0; it has to be at least 0"),
        (
            "optimizer.learning_rate",
            math.nan,
            r"learning_rate is nan; it has to be a finite number",
        ),
        ("optimizer.learning_rate", 10**400, r"learning_rate is inf; it has to be a finite number"),
        ("optimizer.momentum", 1.0, r"momentum is 1\.0; it has to be below 1"),
        ("optimizer.weight_decay", -1e-4, r"weight_decay is -0\.0001; it has to be at least 0"),
        ("optimizer.label_smoothing", 1, r"label_smoothing is 1\.0; it has to be below 1"),
        ("optimizer.warmup_epochs", -1, r"warmup_epochs is -1; it has to be at least 0"),
        ("optimizer.step_epochs", 0, r"step_epochs is 0; it has to be at least 1"),
        ("optimizer.step_factor", 0, r"step_factor is 0\.0; it has to be above 0"),
        ("optimizer.accumulation_steps", 0, r"accumulation_steps is 0; it has to be at least 1"),
        (
            "optimizer.accumulate",
            "som",
            r"unknown config\.optimizer\.accumulate 'som'; did you .*sum",
        ),
        ("optimizer.schedule", "cosin", r"schedule 'cosin'; did you mean cosine"),
        ("data.augmentation", "crop", r"unknown config\.data\.augmentation 'crop'; .*center_crop"),
        ("data.on_error", "ignore", r"unknown config\.data\.on_error 'ignore'; known: stop, skip"),
        ("data.worker_type", "fork", r"unknown config\.data\.worker_type 'fork'"),
        ("data.num_workers", -1, r"num_workers is -1; it has to be at least 0"),
        ("data.resize_size", -1, r"resize_size is -1; it has to be at least 0"),
        ("data.image_size", 10**6, r"image_size is 1000000; it has to be at most 65535"),
        ("data.crop_size", 0, r"crop_size is 0; it has to be at least 1"),
        ("data.crop_size", 300, r"image_size 256 is smaller than crop_size 300"),
        ("data.path", "gs://bucket/x", r"config\.data\.path gs://bucket/x is an address \(gs\)"),
        ("eval.batch_size", 33, r"config\.eval\.batch_size 33 does not divide among 2 devices"),
        ("eval.shift_range", 0, r"shift_range is 0; it has to be at least 1"),
        ("eval.passes", 0, r"passes is 0; it has to be at least 1"),
        ("eval.seed", -1, r"config\.eval\.seed is -1; it has to be at least 0"),
        ("log.wandb", "yes", r"config\.log\.wandb is 'yes'; it has to be True or False"),
        ("checkpoint.keep_every", 0, r"keep_every is 0; it has to be at least 1"),
    ],
)
def test_a_mistake_is_reported_with_accepted_values(name, value, message):
    with pytest.raises(InputError, match=message):
        check_config(changed(**{name: value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer.schedule": "one_cycle", "optimizer.per_step": True},
            "per_step=True does noth",
        ),
        ({"optimizer.per_step": True}, r"does nothing on schedule step, only on cosine; leave it"),
        ({"optimizer.schedule": "cosine", "optimizer.step_factor": 0.2}, "only on step; leave it"),
        ({"optimizer.accumulation_steps": 3}, "256 does not divide into 3 micro-batches on 2 dev"),
        ({"batch_stat_groups": 5}, "does not divide into 1 micro-batches of 5 groups"),
        ({"eval.shift_range": 34}, r"256 pixels .* crops of 224 at offsets 0\.\.33;"),
    ],
)
def test_what_training_cannot_use_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        check_config(changed(**changes), training=True)


def test_numbers_of_numpy_integers_for_floats_and_paths_are_accepted(tmp_path):
    config = check_config(
        changed(
            **{
                "batch_size": np.int64(8),
                "optimizer.learning_rate": np.float64(0.5),
                "optimizer.momentum": 0,
                "data.flip": np.bool_(False),
                "data.path": tmp_path,
            }
        )
    )
    assert (config.batch_size, config.optimizer.learning_rate) == (8, 0.5)
    assert type(config.batch_size) is int
    assert type(config.optimizer.momentum) is float
    assert config.data.flip is False
    assert config.data.path == str(tmp_path)


def test_what_is_absent_is_default_and_the_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = check_config(ConfigDict({"batch_size": 2, "data": {"path": "~/images"}}))
    assert config.data.path == "/home/someone/images"
    config.data.path = ""
    assert config == Config(batch_size=2)


def test_a_number_that_cannot_be_printed_is_refused():
    with pytest.raises(InputError, match="batch_size is a number of thousands of digits; it has"):
        check_config({"batch_size": 10**5000})


def test_an_unset_placeholder_is_reported():
    config = ConfigDict({"data": {"path": config_dict.required_placeholder(str)}})
    with pytest.raises(InputError, match=r"config cannot be read"):
        check_config(config)
    config = ConfigDict({"seed": config_dict.placeholder(int)})
    with pytest.raises(InputError, match=r"config\.seed is None; it has to be an integer"):
        check_config(config)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400, 1e308, -0.0]),
    st.text(max_size=20),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.sampled_from(config_fields()), ANYTHING)
def test_any_value_of_any_field_is_accepted_or_refused_in_one_line(name, value):
    try:
        config = check_config(changed(**{name: value}), training=True)
    except InputError as error:
        lines = str(error).count("\n") + 1
    else:
        lines = 1
        assert check_config(json.loads(config.to_json())) == config
        json.loads(config.to_json(), parse_constant=pytest.fail)
    assert lines == 1
