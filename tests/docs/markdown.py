"""Finds Python blocks, commands, flags, links and anchors in the documentation."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_PROGRAMS = (
    "python ",
    "pytest",
    "pip ",
    "tfds ",
    "srun ",
    "pre-commit",
    "ruff ",
    "pyright",
    ".ci/",
)


@dataclass(frozen=True)
class Found:
    """A piece of a page."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.text.split())[:70]}"


def python_blocks(page: Path) -> list[str]:
    return [text for language, text in _FENCED.findall(page.read_text()) if language == "python"]


def commands(page: Path) -> list[Found]:
    """Returns every command of a page, in its blocks and in its text, one per line."""
    text = page.read_text()
    blocks = [block for language, block in _FENCED.findall(text) if language in ("bash", "sh")]
    rest = _FENCED.sub("", text)
    blocks += _INDENTED.findall(rest)
    lines = [line for block in blocks for line in _joined(block)]
    lines += [span for span in _spans(rest) if _is_command(span)]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [Found(page.name, part) for part in dict.fromkeys(parts) if _is_command(part)]


def other_lines(page: Path) -> list[Found]:
    """Returns the first line that is not a command, of each block that is not Python."""
    text = page.read_text()
    blocks = [block for language, block in _FENCED.findall(text) if language != "python"]
    blocks += _INDENTED.findall(_FENCED.sub("", text))
    lines = ([line for line in _joined(b) if line and not _is_command(line)] for b in blocks)
    return [Found(page.name, found[0]) for found in lines if found]


def flags(page: Path) -> list[Found]:
    """Returns every flag that the text mentions by itself, with its value if it has one."""
    spans = [span for span in _spans(_FENCED.sub("", page.read_text())) if span.startswith("--")]
    found = dict.fromkeys(word for span in spans for word in span.split() if word[:2] == "--")
    return [Found(page.name, word) for word in found]


def fields(page: Path) -> list[Found]:
    """Returns every config field that the text mentions by itself, e.g. `optimizer.schedule`."""
    sections = (
        r"(?:config\.)?((?:optimizer|data|eval|log|checkpoint)\.(?!(?:py|json)$)\w+)(?:=\S+)?"
    )
    found = [re.fullmatch(sections, span) for span in _spans(page.read_text())]
    return [Found(page.name, match[1]) for match in found if match]


def links(page: Path) -> list[Found]:
    """Returns every link to a file of the project, with its anchor."""
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text())
    return [Found(page.name, target) for target in dict.fromkeys(targets) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page: headings as GitHub names them, `<a id>`, reference entries."""
    text = page.read_text()
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    names = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    names |= set(re.findall(r'^<a id="([\w-]+)"></a>$', text, re.MULTILINE))
    return names | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def _spans(text: str) -> list[str]:
    return [" ".join(span.split()) for span in _SPAN.findall(text)]


def _joined(block: str) -> list[str]:
    """Returns the lines of a block of commands, joined at backslashes."""
    return [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines()]


def _is_command(line: str) -> bool:
    return re.sub(r"^(\w+=\S+ )+", "", line).startswith(_PROGRAMS)
