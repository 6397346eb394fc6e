"""Recipes by name and by path."""

from pathlib import Path

import pytest

import aa_flax
from aa_flax import InputError
from aa_flax.recipes import recipe_file, recipe_names

ROOT = Path(__file__).parents[1]


def test_a_name_is_a_file_of_the_package_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(aa_flax.__file__).parent / "configs"
    assert recipe_file("resnet18_lpf4") == f"{folder}/resnet18_lpf4.py"
    assert recipe_file("resnet18_lpf4:baseline") == f"{folder}/resnet18_lpf4.py:baseline"
    assert "__init__" not in recipe_names()


def test_a_clone_has_the_same_files_in_configs():
    for name in recipe_names():
        assert (ROOT / "configs" / f"{name}.py").samefile(recipe_file(name))


def test_a_file_of_ones_own_goes_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "imagenet.py").write_text("")
    assert recipe_file("imagenet.py:x") == "imagenet.py:x"
    assert recipe_file("~/imagenet.py") == f"{tmp_path}/imagenet.py"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("resnet51_lpf4", r"unknown recipe 'resnet51_lpf4'; did you mean resnet50_lpf4"),
        ("configs", r"unknown recipe 'configs'; known: alexnet_lpf4.*\(--config: one of these na"),
        (
            "configs/resnet50_lpf4.py",
            r"no Python file configs/.*goes by its name, --config r",
        ),
        ("mine.py", r"no Python file mine\.py \(--config\): .*did you mean mime\.py"),
        ("gs://bucket/mine.py", r"--config gs://bucket/mine\.py is an address"),
    ],
)
def test_what_is_not_there_is_told_with_the_nearest(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mime.py").write_text("")
    with pytest.raises(InputError, match=message):
        recipe_file(given)
