"""Figures, drawn with matplotlib (the extra `plots`), which is imported only when one is drawn.

Nothing here changes matplotlib's settings permanently, and equal results give equal files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from aa_flax.errors import InputError
from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.row import Point, TimesByFilter, deviation, fastest

ALL_FORMATS = (".png", ".pdf", ".svg")  # of a report's figures: for the screen and for a paper
# Colours that differ clearly on white, and that can be read there as text.
PALETTE = (
    *("#1f5fa8", "#c2500c", "#1b7837", "#7b3294", "#b2182b", "#01665e"),
    *("#8c510a", "#c51b7d", "#4d4d4d", "#5e7200", "#4b3fb5", "#00708f"),
)
_MARKS = "osD^v"  # in addition to the colour, for readers who cannot distinguish colours
# Embedded fonts that journals accept; identifiers in SVG that are not random.
_SETTINGS = {"pdf.fonttype": 42, "svg.hashsalt": "aa_flax"}


def pyplot() -> Any:
    """Returns matplotlib's pyplot, for drawing to files; an InputError says how to install it.

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


def new_figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> Any:
    """Returns a figure of a size in inches, and an array `(rows, columns)` of its panels."""
    options |= {"figsize": size, "squeeze": False, "layout": "constrained"}
    return pyplot().subplots(rows, columns, **options)


def colour_of(i: int) -> str:
    """Returns the colour of the i-th model or family of a figure."""
    return PALETTE[i % len(PALETTE)]


def add_colour_bar(figure: Any, image: Any, axes: Any, label: str, **options: Any) -> None:
    """Adds a bar with the colours of an image next to the panels."""
    bar = figure.colorbar(image, ax=axes, pad=0.01, **options)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def save_figure(figure: Any, path: Path, formats: Sequence[str]) -> None:
    """Writes a figure in each format, without dates, and closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plt = pyplot()
    for text in figure.findobj(lambda part: hasattr(part, "set_parse_math")):
        text.set_parse_math(False)  # names with a $ are not formulas
    with plt.rc_context(_SETTINGS):
        for suffix in formats:
            date = {".pdf": "CreationDate", ".svg": "Date"}.get(suffix)
            metadata = {date: None} if date else None
            figure.savefig(
                path.with_suffix(suffix), dpi=160, bbox_inches="tight", metadata=metadata
            )
    plt.close(figure)


def plot_models(
    path: Path,
    models: Sequence[Point],
    x_label: str,
    y_label: str,
    formats: Sequence[str] = ALL_FORMATS,
) -> None:
    """Plots a point per model, a colour per family, and arrows from baselines.

    Error bars are standard deviations over seeds, where there are several.
    """
    figure, ((panel,),) = new_figure(1, 1, (8, 6))
    families = dict.fromkeys(model.family for model in models)
    colours = {name: colour_of(i) for i, name in enumerate(families)}
    baselines = {m.family: (m.x, m.y) for m in models if m.filter_size is None}
    for family, k, x, y, dx, dy, _ in models:
        style = {"color": colours[family], "markersize": 6, "elinewidth": 1, "capsize": 3}
        errors = {"xerr": dx or None, "yerr": dy or None}
        panel.errorbar(x, y, fmt="o" if k is None else "s", **errors, **style)
        if k is not None and family in baselines:
            arrow = {"arrowstyle": "->", "color": colours[family], "alpha": 0.45, "shrinkB": 4}
            panel.annotate("", (x, y), xytext=baselines[family], arrowprops=arrow)
    panel.set(xlabel=x_label, ylabel=y_label)
    panel.grid(alpha=0.3)
    panel.margins(0.08)
    title = "circles: baselines; squares: antialiased, with the filter size"
    if any(model.x_error or model.y_error for model in models):
        title += "; bars: standard deviation over seeds"
    panel.set_title(title, size=9)
    texts = {(m.x, m.y): (str(m.filter_size or m.family), colours[m.family]) for m in models}
    lines = [(baselines[m.family], (m.x, m.y)) for m in models if m.family in baselines]
    for _, _, x, y, dx, dy, _ in models:
        lines += [((x - dx, y), (x + dx, y)), ((x, y - dy), (x, y + dy))]
    _place_labels(figure, panel, texts, lines)
    save_figure(figure, path, formats)


# Offsets from a mark in points of 1/72 inch, and the alignment of a text there.
_OFFSETS = (
    *((5, 5, "left", "bottom"), (5, -5, "left", "top")),
    *((-5, 5, "right", "bottom"), (-5, -5, "right", "top")),
    *((0, 9, "center", "bottom"), (0, -9, "center", "top")),
    *((9, 0, "left", "center"), (-9, 0, "right", "center")),
)


def _place_labels(
    figure: Any,
    panel: Any,
    texts: Mapping[tuple[float, float], tuple[str, str]],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> None:
    """Writes a text and its colour next to each point, at the offset where it covers least.

    Texts are placed one after another. Each avoids the texts before it, all points and lines, and
    the edge of the panel, whose limits have to be set.
    """
    figure.canvas.draw()
    frame = panel.get_window_extent().extents
    marks = np.array([panel.transData.transform(point) for point in texts])
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for line in lines:  # as boxes of two pixels along it
        start, end = panel.transData.transform(line)
        steps = np.linspace(0, 1, 40)[:, None]
        taken += [(x - 1, y - 1, x + 1, y + 1) for x, y in start + steps * (end - start)]
    for point, (text, colour) in texts.items():
        style = {"color": colour, "fontsize": 8, "parse_math": False}
        style |= {"textcoords": "offset points"}
        tried = [
            panel.annotate(text, point, xytext=(x, y), ha=ha, va=va, **style)
            for x, y, ha, va in _OFFSETS
        ]
        boxes = [one.get_window_extent().extents for one in tried]
        costs = []
        for box in boxes:
            outside = (box[2] - box[0]) * (box[3] - box[1]) - _overlaps(box, [tuple(frame)])[0]
            costs.append(_overlaps(box, taken).sum() + outside)
        best = int(np.argmin(costs))
        for one in tried[:best] + tried[best + 1 :]:
            one.remove()
        taken.append(tuple(boxes[best]))


def _overlaps(box: Any, others: Sequence[tuple]) -> Float[np.ndarray, " n"]:
    """Returns the areas that a box has in common with others."""
    left, bottom, right, top = np.array(others).T
    width = np.minimum(box[2], right) - np.maximum(box[0], left)
    height = np.minimum(box[3], top) - np.maximum(box[1], bottom)
    return width.clip(0) * height.clip(0)


def plot_run_times(
    path: Path,
    families: Mapping[str, TimesByFilter],
    x_label: str,
    formats: Sequence[str] = ALL_FORMATS,
) -> None:
    """Plots a line per family, fastest at the top: times of the baseline and each filter size.

    Error bars are standard deviations over seeds, where there are several.
    """
    names = sorted(families, key=lambda name: -fastest(families[name]))
    figure, ((panel,),) = new_figure(1, 1, (7, 0.35 * len(names) + 1.2))
    sizes = {k for family in families.values() for k in family}
    for k in sorted(sizes, key=lambda k: k or 0):
        timed = [name for name in names if k in families[name]]
        label, marker = ("baseline", "o") if k is None else (f"filter size {k}", f"${k}$")
        seeds = [families[name][k] for name in timed]
        errors = [deviation(times) for times in seeds] if max(map(len, seeds)) > 1 else None
        style = {"linestyle": "none", "marker": marker, "alpha": 0.8, "elinewidth": 1, "capsize": 3}
        x, y = [fmean(times) for times in seeds], [names.index(name) for name in timed]
        panel.errorbar(x, y, xerr=errors, label=label, **style)
    panel.set_yticks(range(len(names)), names)
    panel.set(xlabel=x_label, ylim=(-0.5, len(names) - 0.5))
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save_figure(figure, path, formats)


def plot_curves(
    path: Path,
    models: Mapping[str, Mapping[float, float]],
    x_label: str,
    y_label: str,
    formats: Sequence[str] = ALL_FORMATS,
) -> None:
    """Plots a curve for each model."""
    figure, ((panel,),) = new_figure(1, 1, (7, 4.5))
    for i, (name, points) in enumerate(models.items()):
        style = {"marker": _MARKS[i % len(_MARKS)], "markersize": 4, "color": colour_of(i)}
        panel.plot([*points], [*points.values()], label=name, **style)
    panel.set(xlabel=x_label, ylabel=y_label)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save_figure(figure, path, formats)


def plot_diagonal(
    path: Path,
    probabilities: Mapping[str, Float[np.ndarray, "images offsets"]],
    images: Sequence[int],
    formats: Sequence[str] = (".png",),
) -> None:
    """Plots probabilities of the true class along the diagonal: a panel per image."""
    columns = min(len(images), 4)
    rows = -(-len(images) // columns)
    figure, axes = new_figure(rows, columns, (3.2 * columns, 2.5 * rows + 0.3), sharey=True)
    for panel, image in zip(axes.flat, images, strict=False):
        for i, (name, values) in enumerate(probabilities.items()):
            style = {"marker": _MARKS[i % len(_MARKS)], "markersize": 4, "color": colour_of(i)}
            panel.plot(values[image], label=name, **style)
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


# Of each model `layer`, `aliasing_energy`, `damage` and perhaps `lie_share`, by site.
AliasingCurves = dict[str, dict[str, np.ndarray]]


def plot_aliasing(path: Path, models: AliasingCurves, formats: Sequence[str] = (".png",)) -> None:
    """Plots the aliasing at each subsampling site of models, in the order in which they run.

    Sites that were not measured are left out. Damage is drawn from 0.01 % on, and shares of the Lie
    derivative if there are any.
    """
    labels = {"aliasing_energy": "aliasing energy (%)", "damage": "damage (%)"}
    if any(np.isfinite(arrays.get("lie_share", np.nan)).any() for arrays in models.values()):
        labels["lie_share"] = "share of the Lie derivative (%)"
    figure, (panels,) = new_figure(1, len(labels), (4.5 * len(labels), 3.6))
    for panel, (name, label) in zip(panels, labels.items(), strict=True):
        for i, (title, arrays) in enumerate(models.items()):
            values = arrays.get(name, np.array([]))
            measured = np.flatnonzero(np.isfinite(values))
            percent = 100 * values[measured]
            percent = np.maximum(percent, 0.01) if name == "damage" else percent
            style = {"marker": _MARKS[i % len(_MARKS)], "color": colour_of(i), "label": title}
            panel.plot(measured + 1, percent, **style)
        panel.set(ylabel=label, xlabel="layer that subsamples")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].legend(fontsize=8, loc="upper right")
    save_figure(figure, path, formats)


def plot_equivariance(
    path: Path, models: Mapping[str, EquivarianceMaps], formats: Sequence[str] = (".png",)
) -> None:
    """Plots heat maps of every block, a row per model (Zhang 2019, figure 5).

    Values are percentages of the distance between two different images at the block: blue is 0 %,
    red, as in the paper, 50 % or more. The mean below each map exceeds 100 % where features of the
    shifted image are farther away than those of another image.
    """
    columns = max(len(maps.blocks) for maps in models.values())
    size = (max(1.25 * columns, 6.5), 1.55 * len(models) + 0.9)
    figure, axes = new_figure(len(models), columns, size)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
    for row, (name, maps) in zip(axes, models.items(), strict=True):
        count = len(maps.blocks)
        for panel in row[count:]:
            panel.set_axis_off()
        for i, panel in enumerate(row[:count]):
            percent = 100 * maps.relative[i]
            panel.imshow(percent, cmap="RdYlBu_r", vmin=0, vmax=50)
            stride = "" if i == count - 1 else f" [{maps.strides[i]}]"
            panel.set_title(maps.blocks[i] + stride, fontsize=8)
            panel.set_xlabel(f"mean {percent.mean():.1f} %", fontsize=8)
        row[0].set_ylabel(name.replace(" (", "\n("), fontsize=9)
    period = next(iter(models.values())).maps.shape[-1]
    options = {"extend": "max", "ticks": [0, 10, 20, 30, 40, 50], "fraction": 0.02}
    label = "% of the distance of two images"
    add_colour_bar(figure, axes[0, 0].images[0], axes, label, **options)
    title = "Deviation from shift-equivariance at shifts of 0 to"
    figure.suptitle(f"{title} {period - 1} pixels, down and right", fontsize=10)
    figure.supxlabel(
        "[stride in pixels]; below each map its mean, in % of the distance of two different "
        "images at that block (red: 50 % and more)",
        fontsize=8,
    )
    save_figure(figure, path, formats)
