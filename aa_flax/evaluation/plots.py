"""Figures, with matplotlib (the extra `plots`), which is imported only when one is drawn.

Nothing here changes matplotlib's settings for good, and equal results give equal files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from aa_flax.errors import InputError
from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.labels import place_labels
from aa_flax.evaluation.points import PALETTE, Point, TimesByFilter, deviation, fastest

ALL_FORMATS = (".png", ".pdf", ".svg")  # of a report's figures: to look at, and for a paper
_SETTINGS = {"pdf.fonttype": 42, "svg.hashsalt": "aa_flax"}  # fonts that journals take; no chance


def pyplot() -> Any:
    """matplotlib's pyplot, for drawing to files.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("figures need matplotlib: pip install 'aa_flax[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path, formats: Sequence[str]) -> None:
    """Writes a figure in each format, and closes it; equal figures give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plt = pyplot()
    for text in figure.findobj(lambda part: hasattr(part, "set_parse_math")):
        text.set_parse_math(False)  # names with a $ are no formulas
    with plt.rc_context(_SETTINGS):
        for suffix in formats:
            date = {".pdf": "CreationDate", ".svg": "Date"}.get(suffix)
            figure.savefig(
                path.with_suffix(suffix),
                dpi=160,
                bbox_inches="tight",
                metadata={date: None} if date else None,
            )
    plt.close(figure)


_MARKS = "osD^v"  # beside the colour, for those who see none


def plot_diagonal(
    path: Path,
    probabilities: Mapping[str, Float[np.ndarray, "images offsets"]],
    images: Sequence[int],
    formats: Sequence[str] = (".png",),
) -> None:
    """The true class's probability along the diagonal, a panel an image, a line a net.

    Args:
        formats: suffixes of the files to write; see `ALL_FORMATS`.
    """
    plt = pyplot()
    columns = min(len(images), 4)
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.2 * columns, 2.5 * rows + 0.3),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, image in zip(axes.flat, images, strict=False):
        for i, (name, values) in enumerate(probabilities.items()):
            colour, mark = PALETTE[i % len(PALETTE)], _MARKS[i % len(_MARKS)]
            panel.plot(values[image], marker=mark, markersize=4, color=colour, label=name)
        panel.set_title(f"image {image}", fontsize=10)
        panel.set_ylim(-0.04, 1.04)
        panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("shift down and right (pixels)")
        panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in axes[:, 0]:
        panel.set_ylabel("probability of\nthe true class")
    for panel in axes.flat[len(images) :]:
        panel.set_axis_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save_figure(figure, path, formats)


def plot_equivariance(
    path: Path, nets: Mapping[str, EquivarianceMaps], formats: Sequence[str] = (".png",)
) -> None:
    """Heat maps of every block, a row a net, as the paper's figure 5.

    All is in percent of the distance between two different images at the block: blue is no
    distance; red, as in the paper, half of it or more. Below each map stands its mean, which is
    above 100 % where features of the shifted image are farther off than those of another image.

    Args:
        formats: suffixes of the files to write; see `ALL_FORMATS`.
    """
    plt = pyplot()
    columns = max(len(maps.blocks) for maps in nets.values())
    figure, axes = plt.subplots(
        len(nets),
        columns,
        figsize=(max(1.25 * columns, 6.5), 1.55 * len(nets) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for row, (name, maps) in zip(axes, nets.items(), strict=True):
        _draw_maps(row, name, maps)
    period = next(iter(nets.values())).maps.shape[-1]
    ticks = [0, 10, 20, 30, 40, 50]
    bar = figure.colorbar(
        axes[0, 0].images[0], ax=axes, extend="max", ticks=ticks, fraction=0.02, pad=0.01
    )
    bar.set_label("% of the distance of two images", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(
        f"Deviation from shift-equivariance at shifts of 0 to {period - 1} pixels, down and right",
        fontsize=10,
    )
    figure.supxlabel(
        "[stride in pixels]; below each map its mean, in % of the distance of two different "
        "images at that block (red: 50 % and more)",
        fontsize=8,
    )
    save_figure(figure, path, formats)


def _draw_maps(row: Any, name: str, maps: EquivarianceMaps) -> None:
    """The blocks of one net."""
    for panel in row:
        panel.set_xticks([])
        panel.set_yticks([])
    for panel in row[len(maps.blocks) :]:
        panel.set_axis_off()
    for i, panel in enumerate(row[: len(maps.blocks)]):
        percent = 100 * maps.relative[i]
        panel.imshow(percent, cmap="RdYlBu_r", vmin=0, vmax=50)
        stride = "" if i == len(maps.blocks) - 1 else f" [{maps.strides[i]}]"
        panel.set_title(maps.blocks[i] + stride, fontsize=8)
        panel.set_xlabel(f"mean {percent.mean():.1f} %", fontsize=8)
    row[0].set_ylabel(name.replace(" (", "\n("), fontsize=9)


def plot_nets(
    path: Path,
    nets: Sequence[Point],
    x_label: str,
    y_label: str,
    formats: Sequence[str] = ALL_FORMATS,
) -> None:
    """A point a net, a colour a family, an arrow from each baseline to its antialiased nets.

    Bars are standard deviations over seeds, where there are several.
    """
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(8, 6), layout="constrained")
    families = list(dict.fromkeys(net.family for net in nets))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(families)}
    baselines = {net.family: (net.x, net.y) for net in nets if net.filter_size is None}
    for net in nets:
        colour, plain = colours[net.family], net.filter_size is None
        style = {"color": colour, "markersize": 6, "elinewidth": 1, "capsize": 3}
        panel.errorbar(
            net.x,
            net.y,
            xerr=net.x_error or None,
            yerr=net.y_error or None,
            fmt="o" if plain else "s",
            **style,
        )
        if not plain and net.family in baselines:
            arrow = {"arrowstyle": "->", "color": colour, "alpha": 0.45, "shrinkB": 4}
            panel.annotate("", (net.x, net.y), xytext=baselines[net.family], arrowprops=arrow)
    panel.set_xlabel(x_label)
    panel.set_ylabel(y_label)
    panel.grid(alpha=0.3)
    panel.margins(0.08)
    several = any(net.x_error or net.y_error for net in nets)
    of_bars = "; bars: standard deviation over seeds" if several else ""
    panel.set_title(
        f"circles: baselines; squares: antialiased, with the filter size{of_bars}", size=9
    )
    texts = {
        (net.x, net.y): (str(net.filter_size or net.family), colours[net.family]) for net in nets
    }
    arrows = [(baselines[net.family], (net.x, net.y)) for net in nets if net.family in baselines]
    bars = [line for net in nets for line in _bars(net)]
    place_labels(figure, panel, texts, [*arrows, *bars])
    save_figure(figure, path, formats)


def _bars(net: Point) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The error bars of a point, from end to end."""
    x, y, dx, dy = net.x, net.y, net.x_error, net.y_error
    return [((x - dx, y), (x + dx, y)), ((x, y - dy), (x, y + dy))]


def plot_run_times(
    path: Path,
    families: Mapping[str, TimesByFilter],
    x_label: str,
    formats: Sequence[str] = ALL_FORMATS,
) -> None:
    """A line a net, the fastest at the top: its baseline's time and that of every filter size.

    Bars are standard deviations over seeds, where there are several.

    Args:
        families: milliseconds of every seed by net and filter size; None: the baseline.
    """
    plt = pyplot()
    names = sorted(families, key=lambda name: -fastest(families[name]))
    figure, panel = plt.subplots(figsize=(7, 0.35 * len(names) + 1.2), layout="constrained")
    sizes = {k for family in families.values() for k in family}
    for k in sorted(sizes, key=lambda k: k or 0):
        timed = [name for name in names if k in families[name]]
        label, marker = ("baseline", "o") if k is None else (f"filter size {k}", f"${k}$")
        seeds = [families[name][k] for name in timed]
        panel.errorbar(
            [fmean(times) for times in seeds],
            [names.index(name) for name in timed],
            xerr=[deviation(times) for times in seeds] if max(map(len, seeds)) > 1 else None,
            linestyle="none",
            marker=marker,
            label=label,
            alpha=0.8,
            elinewidth=1,
            capsize=3,
        )
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(-0.5, len(names) - 0.5)
    panel.set_xlabel(x_label)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save_figure(figure, path, formats)
