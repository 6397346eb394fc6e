"""Results of nets as a Markdown table and figures.

    python -m aa_flax.evaluation.report RESULTS... --output DIR

RESULTS are results.json files of `eval.py`, or folders of them. Several results of one net, e.g. of
several seeds, become one row: their mean ± standard deviation. DIR gets `report.md` and its
figures: accuracy against consistency, with an arrow from each baseline to its antialiased nets; and
what else was measured: accuracy against the time of a forward pass, and diagonals and equivariance
maps of each baseline beside those of its antialiased nets.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.errors import InputError
from aa_flax.evaluation import plots
from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.published import comparisons
from aa_flax.models.registry import base_names, parse_name

# Column, and where its figure stands in the results.
COLUMNS = {
    "accuracy": ("top1",),
    "consistency": ("consistency",),
    "consistent and correct": ("consistent_and_correct",),
    "shifted": ("top1_shifted",),
    "worst case": ("worst_case", "top1_worst"),
    "rolled": ("circular", "consistency"),
    "sub-pixel": ("subpixel", "consistency"),
    "jittered": ("jitter", "consistency"),
    "mCE": ("corruptions", "mce"),
    "ms": ("time", "milliseconds"),
}


@dataclass(frozen=True)
class Row:
    """All results of one net with one kind of weights, e.g. of several seeds."""

    model: str
    results: tuple[dict[str, Any], ...]

    @property
    def base(self) -> str:
        return parse_name(self.model)[0]

    def values(self, column: str) -> list[float]:
        """Of each result that has the figure."""
        found = []
        for results in self.results:
            value: Any = results
            for key in COLUMNS[column]:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                found.append(float(value))
        return found

    def point(self, x: str = "accuracy", y: str = "consistency") -> tuple[float, float] | None:
        """The means of two columns, if both were measured."""
        first, second = self.values(x), self.values(y)
        return (float(np.mean(first)), float(np.mean(second))) if first and second else None


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """Reads results and gathers them by net, in the order of the registry.

    Raises:
        InputError: a path without results.
    """
    found: dict[str, list] = {}
    for path in paths:
        for file in _result_files(path):
            results = json.loads(file.read_text())
            if not isinstance(results, dict) or not {"model", "top1"} <= results.keys():
                raise InputError(f"{file} holds no results of eval.py")
            results["folder"] = str(file.parent)
            found.setdefault(results["model"], []).append(results)
    order = base_names()
    models = sorted(found, key=lambda name: (order.index(parse_name(name)[0]), name))
    return [Row(model, tuple(found[model])) for model in models]


def _result_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.json"))
    files = [file for file in files if file.name == "results.json"] or files
    if not files:
        raise InputError(f"no results in {path}: give files of eval.py, or folders that hold them")
    return files


def pareto_front(rows: Sequence[Row]) -> set[str]:
    """Nets that no other is better than in accuracy or consistency without being worse in one."""
    points = _points(rows)
    return {
        name for name, point in points.items() if not any(_beats(p, point) for p in points.values())
    }


def dominated_variants(rows: Sequence[Row]) -> set[str]:
    """Nets that another version of the same net (another filter, or none) beats so."""
    points = _points(rows)
    return {
        name
        for name, point in points.items()
        for other, better in points.items()
        if parse_name(name)[0] == parse_name(other)[0] and _beats(better, point)
    }


def _points(rows: Sequence[Row], *columns: str) -> dict[str, tuple[float, float]]:
    return {row.model: point for row in rows if (point := row.point(*columns))}


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def table(rows: Sequence[Row]) -> str:
    """Markdown; bold: on the Pareto front; italic: beaten by another version of the same net."""
    columns = [name for name in COLUMNS if any(row.values(name) for row in rows)]
    front, dominated = pareto_front(rows), dominated_variants(rows)
    lines = [f"| net | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        mark = "**" if row.model in front else "*" if row.model in dominated else ""
        cells = [_cell(row.values(column)) for column in columns]
        lines.append(f"| {mark}{row.model}{mark} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def published_table(rows: Sequence[Row]) -> str:
    """Measured beside published, for the results of released weights; empty, if there are none."""
    lines = []
    for row in rows:
        for results in row.results:
            for name, c in comparisons(results).items():
                lines.append(
                    f"| {row.model} | {name} | {c.measured:.2f} | {c.published:.2f} "
                    f"| {c.difference:+.2f} | {c.p_value:.2f} |"
                )
    if not lines:
        return ""
    head = ["| net | figure | measured | published | difference | p |", "|---" * 6 + "|"]
    return "\n".join(head + lines)


def write_report(rows: Sequence[Row], output: Path) -> Path:
    """Writes `report.md` and its figures into a folder.

    Returns:
        The path of `report.md`.
    """
    output.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Report",
        "Percentages; several results of a net are given as mean ± standard deviation. **Bold**: "
        "no net of the table is better in accuracy or consistency without being worse in the "
        "other; *italic*: another version of the same net is. `ms`: milliseconds of a forward pass "
        f"of {_batch_sizes(rows)} images.",
        table(rows),
    ]
    if published := published_table(rows):
        parts += [
            "## Beside what was published",
            "`p`: the probability of so large a difference between two samples of images. (Both "
            "figures are of the same images, so differences of a faithful port are smaller.)",
            published,
        ]
    parts += [f"![{path.stem}]({path.name})" for path in _figures(rows, output)]
    report = output / "report.md"
    report.write_text("\n\n".join(parts) + "\n")
    return report


def _batch_sizes(rows: Sequence[Row]) -> str:
    sizes = {r["time"]["batch_size"] for row in rows for r in row.results if "time" in r}
    return " or ".join(str(size) for size in sorted(sizes)) or "48"


def _figures(rows: Sequence[Row], output: Path) -> list[Path]:
    figures = []
    if points := _points(rows):
        figures.append(output / "accuracy_consistency.png")
        plots.plot_nets(figures[-1], points, "accuracy (%)", "consistency (%)")
    if times := _points(rows, "ms", "accuracy"):
        figures.append(output / "time_accuracy.png")
        plots.plot_nets(figures[-1], times, "forward pass (ms)", "accuracy (%)")
    for base, nets in _with(rows, "diagonal").items():
        figures.append(output / f"diagonal_{base}.png")
        curves = {}
        for name, results in nets.items():
            with np.load(_file_of(results, "diagonal")) as arrays:
                curves[name] = arrays["diag_probs"]
        plots.plot_diagonal(figures[-1], curves, next(iter(nets.values()))["diagonal"]["images"])
    for base, nets in _with(rows, "equivariance").items():
        figures.append(output / f"equivariance_{base}.png")
        maps = {n: EquivarianceMaps.load(_file_of(r, "equivariance")) for n, r in nets.items()}
        plots.plot_equivariance(figures[-1], maps)
    return figures


def _with(rows: Sequence[Row], measure: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Each net's first results that have a measure, by base net and by net."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if results := next((r for r in row.results if measure in r), None):
            found.setdefault(row.base, {})[row.model] = results
    return found


def _file_of(results: dict[str, Any], measure: str) -> Path:
    return Path(results["folder"]) / results[measure]["file"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="results.json files, or folders")
    parser.add_argument("--output", type=Path, required=True, help="folder of the report")
    args = parser.parse_args(arguments)
    try:
        rows = read_rows(args.results)
        print(table(rows))
        print(f"written to {write_report(rows, args.output)}")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
