"""Recipes: by name those of this package, by path those of anybody."""

from pathlib import Path

from aa_flax.errors import InputError, unknown
from aa_flax.files import local_path

_FOLDER = Path(__file__).parent / "configs"


def recipe_names() -> list[str]:
    """The recipes that come with this package, e.g. `resnet50_lpf4`."""
    return sorted(path.stem for path in _FOLDER.glob("[!_]*.py"))


def recipe_file(given: str) -> str:
    """The file of a recipe, as ml_collections takes it.

    Args:
        given: a name of `recipe_names()`, or the path of a Python file; with `:VARIANT` behind it
            or without.

    Returns:
        The path, with `:VARIANT` behind it if that was given.

    Raises:
        InputError: no such recipe, no such file, or an address.
    """
    path, colon, variant = str(local_path(given, "--config")).partition(":")
    if path in recipe_names():
        path = str(_FOLDER / f"{path}.py")
    elif not path.endswith(".py"):
        hint = unknown("recipe", path, recipe_names())
        raise InputError(f"{hint} (--config: one of these names, or a file that ends in .py)")
    elif not Path(path).is_file():
        raise InputError(f"no Python file {path} (--config): {_nearest(Path(path))}")
    return f"{path}{colon}{variant}"


def _nearest(path: Path) -> str:
    """Files beside the one that is not there, and the recipe of its name."""
    files = sorted(str(file) for file in path.parent.glob("[!_]*.py"))
    if path.stem in recipe_names():
        return f"the recipe of this package goes by its name, --config {path.stem}"
    return unknown("recipe", str(path), [*files, *recipe_names()])
