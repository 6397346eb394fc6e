"""Docstrings and pages are in the words of the field (CONTRIBUTING.md has the glossary)."""

import ast
import re
from pathlib import Path

import pytest

import aa_flax
from tests.docs.markdown import PAGES, ROOT

MODULES = sorted(Path(aa_flax.__file__).parent.rglob("*.py"))
OPENINGS = r"(?:What|Whether|How|Which|That|Of|Where|If)\b"
NOT_OURS = (
    *("nets?", "anew", "told", "tells?", "whole numbers?", "lies", "stands?", "beside", "behind"),
    *("in turn", "of (?:its|one's) own", "goes on", "comes? over", "is none", "held(?![- ]out)"),
    *("switch(?:es)?", "so long as", "thereby", "therein"),
)
WORDS = re.compile(rf"\b(?:{'|'.join(NOT_OURS)})\b", re.IGNORECASE)
NOT_PROSE = (  # code blocks, generated tables, indented commands, quoted code, links, anchors
    *(r"(?s)```.*?```", r"(?s)<!-- table: .*?<!-- end -->", r"(?m)^ {4}.*$"),
    *(r"`[^`\n]*`", r"\]\([^)\s]*\)", r'<a id="[\w-]+"></a>'),
)


def faults(text: str) -> list[str]:
    """Returns the words of a text that are not the field's."""
    for pattern in NOT_PROSE:
        text = re.sub(pattern, "", text)
    return WORDS.findall(text)


def docstrings(path: Path) -> list[tuple[str, str, bool]]:
    """Returns the docstrings of a module: where, the text, and whether of something public."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            name = getattr(node, "name", "")
            if text := ast.get_docstring(node):
                found.append((f"{path.name} {name}", text, not name.startswith("_")))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_open_with_a_verb_or_a_noun_and_use_the_fields_words(path):
    found = []
    for where, text, public in docstrings(path):
        if public and re.match(OPENINGS, text):
            found.append(f"{where}: {text.splitlines()[0]}")
        found += [f"{where}: {word}" for word in faults(text)]
    assert found == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_pages_use_the_fields_words(page):
    assert faults(page.read_text()) == []
