"""Markdown tables and a figure of the results of `models.py`.

    python benchmarks/models_table.py RESULTS.csv [--figure FILE.png]

Every ratio is torch's time over ours, so above 1 ours is faster: the median over the rounds, in
which both run one after the other, and in brackets the minimum and the maximum. The variant of
torch is the one with the smallest median.
"""

import argparse
import csv
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

FIELDS = ("started", "model", "mode", "batch", "size", "precision", "device", "framework")
FIELDS += ("variant", "versions", "rounds_ms", "compile_s", "peak_mib", "alternating", "error")
OURS, THEIRS = "aa_flax", "torch"
Row = dict[str, str]


class Setting(NamedTuple):
    """A model, pass, batch, size and precision to be measured on both sides."""

    model: str
    mode: str
    batch: int
    size: int
    precision: str

    @classmethod
    def of(cls, row: Row) -> "Setting":
        return cls(row["model"], row["mode"], int(row["batch"]), int(row["size"]), row["precision"])

    def __str__(self) -> str:
        return f"{self.model} {self.mode} {self.precision} {self.batch}x{self.size}"


class Ratio(NamedTuple):
    """The ratio of two times over the rounds."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.greatest:.2f})"


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Returns the ratio of each round's two times; rounds of one side alone are ignored."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=False)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def append(path: Path, rows: Iterable[dict[str, Any]], fields: Sequence[str] = FIELDS) -> None:
    """Appends rows to a CSV file; they are on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n", restval="")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()


def read(path: Path) -> list[Row]:
    """Returns the rows of a CSV file, without a truncated last one; no rows without a file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]


@dataclass(frozen=True)
class Group:
    """One measurement of a setting: a row for each variant of both sides."""

    setting: Setting
    rows: tuple[Row, ...]

    def best(self, framework: str, *variants: str) -> Row | None:
        """Returns the fastest variant, of those named or of all."""
        ran = [r for r in self.rows if r["framework"] == framework and r["rounds_ms"]]
        ran = [r for r in ran if not variants or r["variant"] in variants]
        return min(ran, key=median_ms, default=None)

    @property
    def has_run(self) -> set[tuple[str, str]]:
        """Returns framework and variant of each row, including failed ones."""
        return {(row["framework"], row["variant"]) for row in self.rows}

    def ratio(self, *variants: str) -> Ratio | None:
        """Returns torch's time over ours, if both sides ran."""
        ours, theirs = self.best(OURS, *variants or ("default",)), self.best(THEIRS)
        return ratio(times(theirs), times(ours)) if ours and theirs else None


def times(row: Row) -> list[float]:
    return [float(ms) for ms in row["rounds_ms"].split(";")]


def median_ms(row: Row) -> float:
    return statistics.median(times(row))


def groups(rows: Iterable[Row]) -> list[Group]:
    """Returns, for each setting, device and versions, the latest group with the most variants."""
    by_start: dict[tuple, list[Row]] = {}
    for row in rows:
        by_start.setdefault((row["started"], Setting.of(row), row["device"]), []).append(row)
    chosen: dict[tuple, Group] = {}
    for (_, setting, device), found in by_start.items():
        key = (setting, device, *sorted({row["versions"] for row in found}))
        group = Group(setting, tuple(found))
        if key not in chosen or len(group.rows) >= len(chosen[key].rows):
            chosen[key] = group
    return list(chosen.values())


def table(found: Sequence[Group]) -> str:
    """Returns a row for each setting: both times, their ratio, compilation time and memory."""
    lines = [
        "| model | pass | batch | precision | ours, ms | torch, ms | torch's variant "
        "| torch / ours | compiling, s | peak, MiB |",
        "|---" * 10 + "|",
    ]
    lines += [_line(group) for group in found]
    return "\n".join(lines)


def _line(group: Group) -> str:
    setting, ours, theirs = group.setting, group.best(OURS, "default"), group.best(THEIRS)
    cells = [setting.model, setting.mode, str(setting.batch), setting.precision]
    cells += [f"{median_ms(row):.1f}" if row else "failed" for row in (ours, theirs)]
    cells.append(theirs["variant"].replace("_", " ", 1) if theirs else "")
    cells.append(str(group.ratio() or ""))
    for field, digits in (("compile_s", 1), ("peak_mib", 0)):
        pair = [f"{float(row[field]):.{digits}f}" if row else "-" for row in (ours, theirs)]
        cells.append(", ".join(pair))
    return f"| {' | '.join(cells)} |"


def summary(found: Sequence[Group]) -> str:
    """Returns geometric mean and minimum of the ratios, by pass, batch, precision and kind."""
    kinds: dict[tuple, dict[str, float]] = {}
    for group in found:
        s = group.setting
        if one := group.ratio():
            of = "antialiased" if "_lpf" in s.model else "baseline"
            kinds.setdefault((s.mode, s.batch, s.precision, of), {})[s.model] = one.median
    heads = "| pass | batch | precision | of | models | geometric mean | least |"
    lines = [heads, "|---" * 7 + "|"]
    for kind, ratios in kinds.items():
        least = min(ratios, key=ratios.__getitem__)
        mean = geometric_mean(ratios.values())
        numbers = f"{len(ratios)} | {mean:.2f} | {ratios[least]:.2f} ({least})"
        lines.append(f"| {' | '.join(map(str, kind))} | {numbers} |")
    return "\n".join(lines)


def overheads(found: Sequence[Group]) -> str:
    """Returns the time of antialiased models over their baselines'; empty without pairs."""
    baselines = {(g.setting, _device(g)): g for g in found}
    lines = []
    for group in found:
        base = group.setting._replace(model=group.setting.model.split("_lpf")[0])
        plain = baselines.get((base, _device(group)))
        if plain is None or plain is group:
            continue
        cells = [group.setting.model, group.setting.mode, group.setting.batch]
        cells.append(group.setting.precision)
        for framework in (OURS, THEIRS):
            variants = ("default",) if framework == OURS else ()
            both = group.best(framework, *variants), plain.best(framework, *variants)
            cells.append(ratio(times(both[0]), times(both[1])) if both[0] and both[1] else "")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if not lines:
        return ""
    head = "| model | pass | batch | precision | over its baseline, ours | torch |"
    return "\n".join([head, "|---" * 6 + "|", *lines])


def our_variants(found: Sequence[Group]) -> str:
    """Returns our variants compared with the default; empty if none was measured."""
    lines = []
    for group in found:
        default = group.best(OURS, "default")
        for row in group.rows:
            if row["framework"] == OURS and row is not default:
                faster = "failed: " + row["error"]
                if row["rounds_ms"] and default:
                    faster = str(ratio(times(default), times(row)))
                peak = f"{float(row['peak_mib']):.0f}" if row["peak_mib"] else ""
                lines.append(f"| {group.setting} | {row['variant']} | {faster} | {peak} |")
    if not lines:
        return ""
    head = "| | variant | default's time / its | peak, MiB |"
    return "\n".join([head, "|---" * 4 + "|", *lines])


def _device(group: Group) -> str:
    return group.rows[0]["device"]


def order(group: Group) -> tuple:
    """Sorts by pass, precision and batch; antialiased models first, names by their numbers."""
    s = group.setting
    name = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", s.model)]
    return s.mode, s.precision, s.batch, "_lpf" not in s.model, name


def report(rows: Iterable[Row]) -> str:
    """Returns all tables, for each device and pair of versions under a line that names them."""
    by_device: dict[str, list[Group]] = {}
    for group in groups(rows):
        names = dict.fromkeys(row["versions"] for row in group.rows if row["versions"])
        by_device.setdefault(f"{_device(group)}; {'; '.join(names)}", []).append(group)
    parts = []
    for device, found in by_device.items():
        found.sort(key=order)
        parts += [device, summary(found), table(found), overheads(found), our_variants(found)]
    return "\n\n".join(part for part in parts if part)


def figure(rows: Iterable[Row], path: Path) -> None:
    """Plots torch's time over ours for each model, with the spread over the rounds.

    Each kind of pass has a panel; those of one or two models share one.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[str, dict[str, Ratio]] = {}
    for group in sorted(groups(rows), key=order):
        s = group.setting
        if one := group.ratio():
            panels.setdefault(f"{s.mode}, batch {s.batch}, {s.precision}", {})[s.model] = one
    if not panels:
        return
    few = {title: ratios for title, ratios in panels.items() if len(ratios) < 3}
    if len(few) > 1:
        panels = {title: ratios for title, ratios in panels.items() if title not in few}
        panels["others"] = {
            f"{model}\n{title}": one
            for title, ratios in few.items()
            for model, one in ratios.items()
        }
    longest = max(map(len, panels.values()))
    size = (4.5 * len(panels) + 1, 0.24 * longest + 1.2)
    drawing, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for panel, (title, ratios) in zip(axes[0], panels.items(), strict=True):
        names = list(ratios)[::-1]
        middle = [ratios[name].median for name in names]
        reach = [
            [m - ratios[name].least for m, name in zip(middle, names, strict=True)],
            [ratios[name].greatest - m for m, name in zip(middle, names, strict=True)],
        ]
        colours = ["tab:blue" if m >= 1 else "tab:red" for m in middle]
        panel.errorbar(middle, names, xerr=reach, fmt="none", ecolor="grey", elinewidth=1)
        panel.scatter(middle, names, c=colours, zorder=3)
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xlim(left=0)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("torch's time / ours")
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(axis="y", labelsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="CSV files of models.py")
    parser.add_argument("--figure", type=Path, help="plot of the ratios, e.g. models.png")
    args = parser.parse_args()
    rows = [row for path in args.results for row in read(path)]
    print(report(rows))
    if args.figure:
        figure(rows, args.figure)


if __name__ == "__main__":
    main()
