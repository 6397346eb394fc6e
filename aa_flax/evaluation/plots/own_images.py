"""Figures of the user's own images: the least stable ones, flicker of a clip, tiles, drift."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from aa_flax.evaluation.plots import (
    PALETTE,
    add_colour_bar,
    colour_of,
    new_figure,
    plot_curves,
    pyplot,
    save_figure,
)

Arrays = Mapping[str, np.ndarray]  # stored by a measure for one model


def class_names_in(arrays: Arrays) -> dict[int, str]:
    """Returns the stored names of the classes that a model predicted."""
    return dict(zip(arrays["class"].tolist(), arrays["class_name"].tolist(), strict=True))


def worst_shift(probability: np.ndarray, correct: np.ndarray) -> int:
    """Returns the view where the class is least likely, among those that change it if any do."""
    among = np.flatnonzero(~correct) if not correct.all() else np.arange(len(correct))
    return int(among[probability[among].argmin()])


def plot_least_stable(path: Path, models: Mapping[str, Arrays], formats: Sequence[str]) -> None:
    """Plots the least stable images: a row per image, with a map over the shifts for each model.

    A map shows the probability of the class predicted for the unshifted crop, which is in the
    middle. Crosses mark shifts where another class is likelier.
    """
    chosen = _least_stable(models)
    size = (2.4 + 2.6 * len(models), 2.5 * len(chosen) + 0.4)
    figure, axes = new_figure(len(chosen), 1 + len(models), size)
    for row, (image, pixels) in zip(axes, chosen.items(), strict=True):
        row[0].imshow(pixels)
        row[0].set_title(fill(Path(image).name, 26), fontsize=8)
        row[0].set_axis_off()
        for panel, (name, arrays) in zip(row[1:], models.items(), strict=True):
            _draw_shifts(panel, arrays, arrays["name"].tolist().index(image), name)
    label = "probability of the unshifted crop's class (%)"
    add_colour_bar(figure, axes[0, 1].images[0], axes, label, fraction=0.02)
    figure.supxlabel(
        "crop moved right (pixels; vertically: down); crosses: another class is likelier",
        fontsize=8,
    )
    save_figure(figure, path, formats)


def _least_stable(models: Mapping[str, Arrays]) -> dict[str, np.ndarray]:
    """Returns the pixels of the images that are least stable over all models."""
    stored: dict[str, np.ndarray] = {}
    for arrays in models.values():
        names = arrays["name"][arrays["shown"]].tolist()
        stored |= dict(zip(names, arrays["pixels"], strict=True))

    def stability(name: str) -> list[float]:
        """Fraction of shifts that keep the class, and change of its probability at the worst."""
        found = np.zeros(2)
        for arrays in models.values():
            i = arrays["name"].tolist().index(name)
            probability = arrays["probability"][i]
            kept = arrays["top1"][i][1:] == arrays["own_class"][i]
            found += kept.mean(), probability.min() - probability[0]
        return found.tolist()

    count = max(len(arrays["shown"]) for arrays in models.values())
    return {name: stored[name] for name in sorted(stored, key=stability)[:count]}


def _draw_shifts(panel: Any, arrays: Arrays, i: int, model: str) -> None:
    shift, top = arrays["shift"], arrays["top1"][i]
    probability, same = 100 * arrays["probability"][i], top == arrays["own_class"][i]
    within = int(shift.max())
    grid = np.empty((2 * within + 1, 2 * within + 1))
    grid[shift[:, 0] + within, shift[:, 1] + within] = probability
    edge = within + 0.5
    panel.imshow(grid, cmap="viridis", vmin=0, vmax=100, extent=(-edge, edge, edge, -edge))
    down, right = shift[~same].T
    panel.plot(right, down, "x", color="white", markersize=5, markeredgewidth=1.6)
    panel.plot(right, down, "x", color="#b2182b", markersize=4, markeredgewidth=0.9)
    ticks = [-within, 0, within]
    panel.set_xticks(ticks, ticks, fontsize=7)
    panel.set_yticks(ticks, ticks, fontsize=7)
    worst = worst_shift(probability, same)
    names = class_names_in(arrays)
    text = f"{names[int(top[0])]} {probability[0]:.0f} %, "
    if same.all():
        text += f"never below {probability.min():.0f} %"
    else:
        other = names[int(top[worst])]
        text += f"at worst {probability[worst]:.0f} %, {other} likelier"
    panel.set_title(f"{model}\n{fill(text, 34)}", fontsize=7)


def plot_flicker(path: Path, models: Mapping[str, Arrays], formats: Sequence[str]) -> None:
    """Plots predictions over a clip: the probability of a class and the top-1 class of each frame.

    Each model has a panel with the probability, raw and smoothed, of its most frequent class, and
    below it a band with a colour for each class (the most frequent ones; grey: all others). The
    last panel has the run lengths of all models.
    """
    heights = [3, 0.45] * len(models) + [2.4]
    size = (8, 0.62 * sum(heights) + 0.4)
    figure, axes = new_figure(len(heights), 1, size, height_ratios=heights)
    panels = axes[:, 0]
    for i, (name, arrays) in enumerate(models.items()):
        _draw_curve(panels[2 * i], name, arrays, colour_of(i))
        _draw_classes(panels[2 * i + 1], arrays)
    end = _seconds(next(iter(models.values())))[-1]
    for i, panel in enumerate(panels[: 2 * len(models)]):
        panel.set_xlim(0, end)
        panel.tick_params(labelsize=8, labelbottom=i % 2 == 1)
    _draw_runs(panels[-1], models)
    save_figure(figure, path, formats)


def _seconds(arrays: Arrays) -> np.ndarray:
    """Returns when each frame begins, and when the last one ends."""
    start = arrays["seconds"] - arrays["seconds"][0]
    return np.append(start, start[-1] + 1 / float(arrays["fps"]))


def _draw_curve(panel: Any, name: str, arrays: Arrays, colour: str) -> None:
    start, window = _seconds(arrays)[:-1], int(arrays["window"])
    of = class_names_in(arrays)[int(arrays["most_frequent"])]
    seconds = window / float(arrays["fps"])
    panel.plot(start, 100 * arrays["probability"], color="#999999", linewidth=0.8, label="raw")
    label = f"mean over {window} frames ({seconds:.2f} s)"
    panel.plot(start, 100 * arrays["smoothed"], color=colour, linewidth=1.6, label=label)
    rate = (np.diff(arrays["top1"]) != 0).mean() * arrays["fps"]
    panel.set_title(f"{name}: {rate:.2f} flips a second", fontsize=9)
    panel.set_ylabel(f"P of {fill(of, 16)} (%)", fontsize=8)
    panel.set_ylim(-4, 104)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, loc="best")


def _draw_classes(panel: Any, arrays: Arrays) -> None:
    top = arrays["top1"]
    classes, counts = np.unique(top, return_counts=True)
    first = classes[np.argsort(-counts, kind="stable")][:5]
    edges, names = _seconds(arrays), class_names_in(arrays)
    bands = [(names[int(c)], top == c, colour) for c, colour in zip(first, PALETTE, strict=False)]
    if len(first) < len(classes):
        bands.append(("other classes", ~np.isin(top, first), "#bbbbbb"))
    for name, frames, colour in bands:
        spans = [(edges[i], edges[i + 1] - edges[i]) for i in np.flatnonzero(frames)]
        panel.broken_barh(spans, (0, 1), color=colour, linewidth=0, label=name)
    panel.set(ylim=(0, 1), yticks=[])
    panel.set_xlabel("time (s)", fontsize=8, loc="right")
    panel.legend(fontsize=7, ncols=6, loc="upper left", bbox_to_anchor=(0, -0.9))


def _draw_runs(panel: Any, models: Mapping[str, Arrays]) -> None:
    for i, (name, arrays) in enumerate(models.items()):
        runs = np.sort(arrays["run_seconds"])
        percent = 100 * np.arange(1, len(runs) + 1) / len(runs)
        steps = np.ravel([percent - percent[0], percent], "F")
        count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
        label = f"{name}: {count}, median {np.median(runs):.2f} s"
        style = {"color": colour_of(i), "marker": ".", "markersize": 4}
        panel.plot(np.repeat(runs, 2), steps, label=label, **style)
    panel.set_xscale("log")
    panel.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("")
    _finish(panel, "length of a run of one class (s)", "runs at most\nso long (%)")


def plot_drift(path: Path, models: Mapping[str, Arrays], formats: Sequence[str]) -> None:
    """Plots the mean drift of embeddings by the distance of the shift, a curve for each model."""
    curves = {
        name: dict(zip(arrays["radius"].tolist(), arrays["drift"].tolist(), strict=True))
        for name, arrays in models.items()
    }
    y_label = "drift (% of the mean distance\nbetween different images)"
    plot_curves(path, curves, "shift (pixels, the larger of both axes)", y_label, formats)


def plot_tiles(path: Path, models: Mapping[str, Arrays], formats: Sequence[str]) -> None:
    """Plots where tiles differ from the whole image: its cuts, a map per model, and curves."""
    first = next(iter(models.values()))
    height, width = first["used"]
    aspect = height / width
    columns = 1 + len(models)
    figure, axes = pyplot().subplot_mosaic(
        [[f"panel {i}" for i in range(columns)], ["curve"] * columns],
        figsize=(3.1 * columns, 3.1 * aspect + 2.6),
        height_ratios=(3.1 * aspect, 2.0),
        layout="constrained",
    )
    panels = [axes[f"panel {i}"] for i in range(columns)]
    panels[0].imshow(first["picture"], extent=(0, width, height, 0))
    panels[0].set_title(f"{len(first['tiles'])} tiles of {first['tile']} pixels", fontsize=9)
    most = max(float(arrays["difference_map"].max()) for arrays in models.values()) or 1.0
    for panel, (name, arrays) in zip(panels[1:], models.items(), strict=True):
        values = 100 * arrays["difference_map"]
        panel.imshow(values, cmap="magma", vmin=0, vmax=100 * most, extent=(0, width, height, 0))
        panel.set_title(f"{name}: mean {values.mean():.1f} %", fontsize=9)
    tops, lefts = (set(starts.tolist()) - {0} for starts in first["tiles"].T)
    for panel in panels:
        style = {"color": "white" if panel is panels[0] else "#40c0ff", "linewidth": 0.7}
        for top in tops:
            panel.axhline(top, **style)
        for left in lefts:
            panel.axvline(left, **style)
        panel.set(xlim=(0, width), ylim=(height, 0))
        panel.tick_params(labelsize=7)
    what = "tiles with another label" if first["is_of_labels"] else "difference from the whole"
    add_colour_bar(figure, panels[-1].images[0], panels, f"{what} (%)", fraction=0.03)
    _draw_profiles(axes["curve"], models, what)
    save_figure(figure, path, formats)


def _draw_profiles(panel: Any, models: Mapping[str, Arrays], what: str) -> None:
    for i, (name, arrays) in enumerate(models.items()):
        style = {"color": colour_of(i), "marker": ".", "markersize": 4}
        panel.plot(arrays["depth"], 100 * arrays["mean"], label=f"{name}: mean", **style)
        largest = 100 * arrays["largest"]
        panel.plot(arrays["depth"], largest, "--", label=f"{name}: largest", **style)
    panel.set_ylim(bottom=0)
    _finish(panel, "pixels to the nearest cut edge", f"{fill(what, 20)} (%)", ncols=2)


def _finish(panel: Any, x_label: str, y_label: str, **legend: Any) -> None:
    panel.set_xlabel(x_label, fontsize=8)
    panel.set_ylabel(y_label, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, **legend)
