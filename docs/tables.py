"""Writes the tables of README and docs from result files of benchmarks and from the config.

    python docs/tables.py

A page has a line `<!-- table: SOURCE [PART] -->`, the table, and `<!-- end -->`. SOURCE is

- a text file in `docs/`: the output of a benchmark, inserted unchanged;
- a CSV file of `benchmarks/models.py` in `docs/`: PART is one of the tables of models_table.py;
- `comparisons`: the summaries of all comparisons with torch in one table;
- `measured/digits.csv`: PART is the augmentation, the version of jax, and the type if
  it is not float32;
- `config`: PART is a class of `aa_flax/config.py`.

A test compares every page with these sources. To change a number, run the command above its
table, which writes the result file.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from aa_flax import config  # noqa: E402
from benchmarks import digits, models_table  # noqa: E402

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_BLOCK = re.compile(r"(<!-- table: (\S+)([ \w.]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_OF_MODELS: Mapping[str, Callable[[list[models_table.Group]], str]] = {
    "summary": models_table.summary,
    "table": models_table.table,
    "overheads": models_table.overheads,
    "variants": models_table.our_variants,
}
# Result files, with torch's mode and which side keeps its memory between calls.
_COMPARISONS: Mapping[str, tuple[str, str]] = {
    "models_cpu_commands.csv": ("compiled", "ours"),
    "models_cpu_kept.csv": ("compiled", "both"),
    "models_cpu_compiled.csv": ("compiled", "neither"),
    "models_cpu.csv": ("eager", "neither"),
}


def filled(page: str) -> str:
    """Returns the text of a page with every table filled from its source."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{_table(m[2], *m[3].split())}\n\n{m[5]}", page)


def sources(page: str) -> list[str]:
    """Returns the sources of a page's tables."""
    return [source for _, source, _, _, _ in _BLOCK.findall(page)]


def _table(source: str, *part: str) -> str:
    if source == "config":
        return _config_table(getattr(config, *part))
    if source == "comparisons":
        return _comparisons()
    path = ROOT / "docs" / source
    if path.suffix == ".txt":
        return path.read_text().strip()
    if source == "measured/digits.csv":
        return digits.table(digits.read(path), *part)
    return _OF_MODELS[part[0]](_groups(path))


def _groups(path: Path) -> list[models_table.Group]:
    return sorted(models_table.groups(models_table.read(path)), key=models_table.order)


def _comparisons() -> str:
    """Returns the summary of each comparison, below one another."""
    heads = "| torch | memory kept | pass | batch | precision | of | models | geometric mean "
    lines = [heads + "| lowest |", "|---" * 9 + "|"]
    for name, sides in _COMPARISONS.items():
        summary = models_table.summary(_groups(ROOT / "docs/benchmarks" / name))
        lines += [f"| {' | '.join(sides)} {row}" for row in summary.splitlines()[2:]]
    return "\n".join(lines)


def _config_table(group: type) -> str:
    """Returns a row for each value of a config group, with the comment above it."""
    lines = ["| value | default | accepted | |", "|---" * 4 + "|"]
    for field, comment in zip(_values(group), _comments(group), strict=True):
        bounds = {**field.metadata}
        known = ", ".join(f"`{word}`" for word in bounds.pop("known", ()))
        limits = ", ".join(
            f"{bound.replace('_', ' ')} {limit:g}"
            for bound, limit in bounds.items()
            if limit != config.MOST
        )
        kind = getattr(field.type, "__name__", str(field.type)).partition("[")[0]
        default = {} if callable(field.default_factory) else field.default
        accepted = known or ", ".join(part for part in (kind, limits) if part)
        lines.append(f"| `{field.name}` | `{default!r}` | {accepted} | {comment} |")
    return "\n".join(lines)


def _values(group: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(group) if not dataclasses.is_dataclass(f.type)]


def _comments(group: type) -> Iterator[str]:
    """Yields the comment above each value."""
    comment = []
    for line in inspect.getsource(group).splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip(" #"))
        elif comment:
            yield " ".join(comment)
            comment = []


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text()
        if filled(text) != text:
            page.write_text(filled(text))
            print(f"written: {page.relative_to(ROOT)}")
