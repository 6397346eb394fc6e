"""The site: every page has its place, every public name its entry, every picture its program."""

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
# Modules that serve others of this package alone, and may change without notice.
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
    """Takes what `!!python/...` says as text."""


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
    """By its own name, or by the name it has in `aa_flax`."""
    assert "aa_flax.transform.antialias.Antialias" in ENTRIES  # whose one object `antialias` is
    named = NAMED | {"antialias"}
    names = {name for name in package.__all__ if package is aa_flax or name not in named}
    own = package.__name__.removeprefix("aa_flax").lstrip(".")
    assert {f"{own}.{name}".lstrip(".") for name in names} - named == set()


@pytest.mark.parametrize("name", PACKAGES)
def test_every_module_is_in_the_reference_or_said_to_be_internal(name):
    """Add a new one to a page of docs/reference, or above if it is of no use to others."""
    package = importlib.import_module(f"aa_flax.{name}")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    homes = [getattr(aa_flax, public).__module__ for public in aa_flax.__all__ if public in NAMED]
    places = [*ENTRIES, *homes]
    shown = {place.split(".")[2] for place in places if place.startswith(f"aa_flax.{name}.")}
    if name == "evaluation":  # documented in the guide, by their flags
        modules -= {"measures"}
    assert modules - shown == set(INTERNAL[name].split())


def entry_named(entry: str):
    """The module, class or function of an entry."""
    if entry == "aa_flax.export":  # the function, which the module of that name gives way to
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
    """Read from the files, as the site is."""
    assert [e for e in sorted(ENTRIES) if not (entry_named(e).__doc__ or "").strip()] == []


def functions_of(found):
    """Public functions and methods by name, each with its docstring or that of its class."""
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
                told = found.__doc__ if called else ""
                documented = inspect.getdoc(getattr(found, name))  # a base's, where it has none
                yield member, f"{documented} {told}"
    elif inspect.isfunction(found):
        yield found, found.__doc__ or ""


def test_every_error_that_an_entry_raises_is_in_its_docstring():
    """By its own `raise`; those of what it calls are for readers to see."""
    found = [pair for entry in sorted(ENTRIES) for pair in functions_of(entry_named(entry))]
    assert len(found) > 300
    silent = []
    for function, told in found:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
        raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc]
        kinds = {ast.unparse(exc).partition("(")[0] for exc in raised} - {"NotImplementedError"}
        if any(kind.endswith("Error") for kind in kinds) and "aises" not in told:
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
