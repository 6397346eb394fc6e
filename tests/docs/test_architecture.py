"""The architecture page lists the parts of the package, which import only downwards."""

import ast
import re

import pytest

from tests.docs.markdown import ROOT

PACKAGE = ROOT / "aa_flax"
PAGE = (ROOT / "docs/architecture.md").read_text()
LAYOUT = PAGE.partition("## Layout")[2].partition("\n## ")[0]
# Paths of the parts in the order of the page: a part imports from those above it.
PARTS = [
    path
    for row in re.findall(r"^\| (`.+?) \|", LAYOUT, re.M)
    for path in re.findall("`(.+?)`", row)
]
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def part_of(path: str) -> str:
    """Returns the part of a file: its folder in the package, or itself."""
    folder, slash, _ = path.partition("/")
    return folder + slash


def imported(path) -> list[str]:
    """Returns the files of this package that a file imports, except for types."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and id(n) not in for_types]
    found = []
    for node in nodes:
        if str(node.module).partition(".")[0] == "aa_flax":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in [*names, str(node.module)]:
                file = name.removeprefix("aa_flax.").replace(".", "/")
                found += [f for f in (f"{file}.py", f"{file}/") if (PACKAGE / f).exists()]
    return found


def test_every_part_of_the_package_is_on_the_page_once():
    entries = [path for path in PACKAGE.iterdir() if path.suffix in ("", ".py")]
    there = {path.name + "/" * path.is_dir() for path in entries}
    there -= {"__init__.py", "__main__.py", "__pycache__/", "configs/"}
    assert sorted(part for part in PARTS if part == part_of(part)) == sorted(there)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_parts_above_its_own(path):
    own = part_of(str(path.relative_to(PACKAGE)))
    if own != "__main__.py":
        assert {part_of(file) for file in imported(path)} - set(
            PARTS[: PARTS.index(own) + 1]
        ) == set()


def test_every_file_that_the_page_names_is_there():
    files = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert [file for file in sorted(files) if not (PACKAGE / file).exists()] == []
