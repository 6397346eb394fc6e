"""Docstrings, comments, messages and pages are in the words of the field (CONTRIBUTING.md)."""

import ast
import re
import tokenize
from pathlib import Path

import pytest

from tests.docs.markdown import PAGES, ROOT

FOLDERS = ("aa_flax", "benchmarks", "configs", "docs", "examples", "tests")
SOURCES = [
    *ROOT.glob("*.py"),
    *ROOT.glob(".ci/*.py"),
    *(f for n in FOLDERS for f in (ROOT / n).rglob("*.py")),
]
SCRIPTS = [
    *ROOT.glob("benchmarks/*.sh"),
    *(f for f in ROOT.glob(".ci/*") if f.is_file() and not f.suffix),
]
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


def prose(path: Path) -> tuple[list[str], list[str]]:
    """Returns the docstrings of a module; and its comments and strings with spaces."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    others = [token.string for token in tokens if token.type == tokenize.COMMENT]
    if path.is_relative_to(ROOT / "aa_flax") or path.is_relative_to(ROOT / "benchmarks"):
        values = [node.value for node in nodes if isinstance(node, ast.Constant)]
        others += [value for value in values if isinstance(value, str) and " " in value]
    return [text for text in docstrings if text], others


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_open_with_a_verb_or_a_noun_and_use_the_fields_words(path):
    docstrings, others = prose(path)
    assert [text for text in docstrings if re.match(OPENINGS, text)] == []
    assert [(faults(text), text) for text in [*docstrings, *others] if faults(text)] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_comments_of_scripts_use_the_fields_words(path):
    assert faults("\n".join(re.findall(r"(?m)(?:^| )# .*$", path.read_text()))) == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_pages_use_the_fields_words(page):
    assert faults(page.read_text()) == []
