"""Every recipe of `configs/`, as the commands read it."""

import importlib
import inspect

import pytest

from aa_flax import InputError, list_models
from aa_flax.configs import imagenet
from aa_flax.recipes import recipe_names

NAMES = recipe_names()
PUBLISHED = [name for name in NAMES if not name.startswith(("digits", "imagenet"))]


def module(name):
    return importlib.import_module(f"aa_flax.configs.{name}")


def types(tree, prefix=""):
    """The type of every field, by its path; options are of the net, and of any kind."""
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
def test_the_baseline_differs_in_the_net_alone(name):
    get_config = module(name).get_config
    if "variant" not in inspect.signature(get_config).parameters:
        pytest.skip("fine-tuning begins with the baseline")
    recipe, baseline = get_config(), get_config("baseline")
    assert baseline.model == baseline.name == name.removesuffix("_lpf4")
    baseline.update({"name": recipe.name, "model": recipe.model})
    assert baseline == recipe
    with pytest.raises(InputError, match="variant 'base' of a recipe; known: baseline"):
        get_config("base")
