"""Every page of the site is in the navigation, every public name in the reference."""

import ast
import importlib
import inspect
import pkgutil
import re
import runpy
import textwrap

import pytest
import yaml

import aa_flax
import aa_flax.ops
import aa_flax.pools
import aa_flax.transform
from tests.docs.markdown import ROOT

PACKAGES = ("data", "evaluation", "report", "training", "weights")
ENTRIES = {
    entry
    for page in (ROOT / "docs/reference").glob("*.md")
    for entry in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
}
NAMED = {entry.removeprefix("aa_flax.") for entry in ENTRIES}  # those of `aa_flax` itself
# Modules for use inside this package only, which may change without notice.
INTERNAL = {
    "data": "cache clips unlabelled",
    "evaluation": (
        "by_config curves engine intervals own_images predict results schema settings stored text"
    ),
    "report": "__main__ comparisons",
    "training": "run_folder",
    "weights": "building fit train_state",
}


class Loader(yaml.SafeLoader):
    """A YAML loader that reads `!!python/...` as text."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, tag, node: tag)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)


def pages_of(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_of(part)]


def test_every_page_is_in_the_navigation_once():
    there = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    listed = [page for page in pages_of(CONFIG["nav"]) if not page.startswith("project/")]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize(
    "package", [aa_flax, aa_flax.ops, aa_flax.pools, aa_flax.transform], ids=lambda p: p.__name__
)
def test_every_public_name_is_in_the_reference(package):
    """By its full name, or by its name in `aa_flax`."""
    assert "aa_flax.transform.antialias.Antialias" in ENTRIES  # the class of `antialias`
    named = NAMED | {"antialias"}
    names = {name for name in package.__all__ if package is aa_flax or name not in named}
    own = package.__name__.removeprefix("aa_flax").lstrip(".")
    assert {f"{own}.{name}".lstrip(".") for name in names} - named == set()


@pytest.mark.parametrize("name", PACKAGES)
def test_every_module_is_in_the_reference_or_listed_as_internal(name):
    """Add a new one to a page of docs/reference, or above if users do not need it."""
    package = importlib.import_module(f"aa_flax.{name}")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    homes = [getattr(aa_flax, public).__module__ for public in aa_flax.__all__ if public in NAMED]
    places = [*ENTRIES, *homes]
    shown = {place.split(".")[2] for place in places if place.startswith(f"aa_flax.{name}.")}
    if name == "evaluation":  # documented in the guide, by their flags
        modules -= {"measures"}
    assert modules - shown == set(INTERNAL[name].split())


def entry_named(entry: str):
    """Returns the module, class or function of an entry."""
    if entry == "aa_flax.export":  # the function replaces the module of that name
        return importlib.import_module(entry).export
    owner, names = entry, []
    while True:
        try:
            found = importlib.import_module(owner)
            break
        except ModuleNotFoundError:
            owner, _, last = owner.rpartition(".")
            names.insert(0, last)
    for name in names:
        found = getattr(found, name)
    return found


def test_every_entry_has_a_docstring():
    assert [e for e in sorted(ENTRIES) if not (entry_named(e).__doc__ or "").strip()] == []


def functions_of(found):
    """Yields public functions and methods with their docstrings and those of their classes."""
    if inspect.ismodule(found):
        members = [m for n, m in vars(found).items() if not n.startswith("_")]
        for member in members:
            if getattr(member, "__module__", None) == found.__name__:
                yield from functions_of(member)
    elif isinstance(found, type):
        for name, member in vars(found).items():
            called = name in ("__init__", "__call__")
            written = inspect.isfunction(member) and member.__code__.co_filename.startswith(
                str(ROOT / "aa_flax")
            )
            if written and (called or not name.startswith("_")):
                text = found.__doc__ if called else ""
                documented = inspect.getdoc(getattr(found, name))  # or that of a base class
                yield member, f"{documented} {text}"
    elif inspect.isfunction(found):
        yield found, found.__doc__ or ""


def test_every_error_that_an_entry_raises_is_in_its_docstring():
    """Only its own `raise` statements are tested, not those of functions that it calls."""
    found = [pair for entry in sorted(ENTRIES) for pair in functions_of(entry_named(entry))]
    assert len(found) > 300
    silent = []
    for function, text in found:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
        raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc]
        kinds = {ast.unparse(exc).partition("(")[0] for exc in raised} - {"NotImplementedError"}
        if any(kind.endswith("Error") for kind in kinds) and "aises" not in text:
            silent.append(f"{function.__module__}.{function.__qualname__}")
    assert silent == [], silent


def test_the_pictures_of_the_explanation_are_those_that_the_program_draws(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    tree = ast.parse((ROOT / "docs/pictures.py").read_text())
    drawn = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and _is_png(n.value)}
    shown = set(re.findall(r"\(pictures/(.+?)\)", (ROOT / "docs/explanation.md").read_text()))
    assert drawn == shown == {path.name for path in (ROOT / "docs/pictures").iterdir()}
    runpy.run_path(str(ROOT / "docs/pictures.py"))["draw_filters"](tmp_path)
    assert (tmp_path / "filters.png").stat().st_size > 10_000


def _is_png(value: object) -> bool:
    return isinstance(value, str) and value.endswith(".png")
