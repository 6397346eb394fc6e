"""Figures of people's own pictures: the least stable images, a clip's flicker, tiles."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from aa_flax.evaluation.plots import pyplot, save_figure
from aa_flax.evaluation.points import PALETTE

Arrays = Mapping[str, np.ndarray]  # what a measure stored of a net


def class_names_in(arrays: Arrays) -> dict[int, str]:
    """The names that were stored, of the classes that a net gave."""
    return dict(zip(arrays["class"].tolist(), arrays["class_name"].tolist(), strict=True))


def worst_shift(probability: np.ndarray, correct: np.ndarray) -> int:
    """Returns the view where the class is least likely, among those that change it if any do."""
    among = np.flatnonzero(~correct) if not correct.all() else np.arange(len(correct))
    return int(among[probability[among].argmin()])


def plot_least_stable(path: Path, nets: Mapping[str, Arrays], formats: Sequence[str]) -> None:
    """The least stable images, a row each: the picture, and for each net a map over the shifts.

    A map shows the probability of the class of the unshifted crop, which is in the middle; crosses
    are where another class is likelier.

    Args:
        nets: what the measure `images` stores, by net; all of the same images and shifts. The
            images that are least stable on average are shown.
    """
    plt = pyplot()
    chosen = _least_stable(nets)
    figure, axes = plt.subplots(
        len(chosen),
        1 + len(nets),
        figsize=(2.4 + 2.6 * len(nets), 2.5 * len(chosen) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for row, (image, pixels) in zip(axes, chosen.items(), strict=True):
        row[0].imshow(pixels)
        row[0].set_title(fill(Path(image).name, 26), fontsize=8)
        row[0].set_axis_off()
        for panel, (name, arrays) in zip(row[1:], nets.items(), strict=True):
            place = arrays["name"].tolist().index(image)
            _draw_shifts(panel, arrays, place, name)
    bar = figure.colorbar(axes[0, 1].images[0], ax=axes, fraction=0.02, pad=0.01)
    bar.set_label("probability of the unshifted crop's class (%)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel(
        "crop moved right (pixels; vertically: down); crosses: another class is likelier",
        fontsize=8,
    )
    save_figure(figure, path, formats)


def _least_stable(nets: Mapping[str, Arrays]) -> dict[str, np.ndarray]:
    """Pixels of the images that are least stable over all nets, of those that were stored."""
    stored: dict[str, np.ndarray] = {}
    for arrays in nets.values():
        names = arrays["name"][arrays["shown"]].tolist()
        stored |= dict(zip(names, arrays["pixels"], strict=True))
    steadiness: dict[str, tuple[float, float]] = {}
    for name in stored:
        kept, fall = zip(*(_steadiness(arrays, name) for arrays in nets.values()), strict=True)
        steadiness[name] = (sum(kept), sum(fall))
    count = max(len(arrays["shown"]) for arrays in nets.values())
    return {name: stored[name] for name in sorted(stored, key=steadiness.__getitem__)[:count]}


def _steadiness(arrays: Arrays, name: str) -> tuple[float, float]:
    """The share of shifts that keep the class, and how far its probability does not fall."""
    place = arrays["name"].tolist().index(name)
    probability = arrays["probability"][place]
    kept = arrays["top1"][place][1:] == arrays["own_class"][place]
    return float(kept.mean()), float(probability.min() - probability[0])


def _draw_shifts(panel: Any, arrays: Arrays, place: int, net: str) -> None:
    """One image as one net sees it at every shift."""
    shift, top = arrays["shift"], arrays["top1"][place]
    probability, same = 100 * arrays["probability"][place], top == arrays["own_class"][place]
    within = int(shift.max())
    grid = np.empty((2 * within + 1, 2 * within + 1))
    grid[shift[:, 0] + within, shift[:, 1] + within] = probability
    reach = within + 0.5
    extent = (-reach, reach, reach, -reach)
    panel.imshow(grid, cmap="viridis", vmin=0, vmax=100, extent=extent)
    down, right = shift[~same].T
    panel.plot(right, down, "x", color="white", markersize=5, markeredgewidth=1.6)
    panel.plot(right, down, "x", color="#b2182b", markersize=4, markeredgewidth=0.9)
    ticks = [-within, 0, within]
    panel.set_xticks(ticks, ticks, fontsize=7)
    panel.set_yticks(ticks, ticks, fontsize=7)
    worst = worst_shift(probability, same)
    names = class_names_in(arrays)
    told = f"{names[int(top[0])]} {probability[0]:.0f} %, "
    if same.all():
        told += f"never below {probability.min():.0f} %"
    else:
        other = names[int(top[worst])]
        told += f"at worst {probability[worst]:.0f} %, {other} likelier"
    panel.set_title(f"{net}\n{fill(told, 34)}", fontsize=7)


def plot_flicker(path: Path, nets: Mapping[str, Arrays], formats: Sequence[str]) -> None:
    """A clip as nets see it: a probability over time, raw and smoothed, and the top-1 class.

    For each net the probability of its most frequent class; below it a band with a colour for each
    class (the most frequent ones; grey: all others); at the end the run lengths of all nets.

    Args:
        nets: what the measure `clip` stores, by net; all of the same frames.
    """
    plt = pyplot()
    heights = [3, 0.45] * len(nets) + [2.4]
    figure, axes = plt.subplots(
        len(heights),
        1,
        figsize=(8, 0.62 * sum(heights) + 0.4),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    panels = list(axes[:, 0])
    for i, (name, arrays) in enumerate(nets.items()):
        _draw_curve(panels[2 * i], name, arrays, PALETTE[i % len(PALETTE)])
        _draw_classes(panels[2 * i + 1], arrays)
    end = _seconds(next(iter(nets.values())))[-1]
    for place, panel in enumerate(panels[: 2 * len(nets)]):
        panel.set_xlim(0, end)
        panel.tick_params(labelsize=8, labelbottom=place % 2 == 1)
    _draw_runs(panels[-1], nets)
    save_figure(figure, path, formats)


def _seconds(arrays: Arrays) -> np.ndarray:
    """When each frame begins, and the last one ends."""
    start = arrays["seconds"] - arrays["seconds"][0]
    return np.append(start, start[-1] + 1 / float(arrays["fps"]))


def _draw_curve(panel: Any, name: str, arrays: Arrays, colour: str) -> None:
    start, window = _seconds(arrays)[:-1], int(arrays["window"])
    of = class_names_in(arrays)[int(arrays["most_frequent"])]
    seconds = window / float(arrays["fps"])
    panel.plot(start, 100 * arrays["probability"], color="#999999", linewidth=0.8, label="raw")
    label = f"mean over {window} frames ({seconds:.2f} s)"
    panel.plot(start, 100 * arrays["smoothed"], color=colour, linewidth=1.6, label=label)
    rate = float((np.diff(arrays["top1"]) != 0).mean() * arrays["fps"])
    panel.set_title(f"{name}: {rate:.2f} flips a second", fontsize=9)
    panel.set_ylabel(f"P of {fill(of, 16)} (%)", fontsize=8)
    panel.set_ylim(-4, 104)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, loc="best")


def _draw_classes(panel: Any, arrays: Arrays) -> None:
    """A band: which class each frame has, those with the most frames in colour."""
    top = arrays["top1"]
    classes, counts = np.unique(top, return_counts=True)
    first = classes[np.argsort(-counts, kind="stable")][:5]
    edges, names = _seconds(arrays), class_names_in(arrays)
    colours = [*PALETTE[: len(first)], "#bbbbbb"]
    for place, (label, colour) in enumerate(zip([*first, None], colours, strict=True)):
        these = ~np.isin(top, first) if label is None else top == label
        name = "other classes" if label is None else names[int(label)]
        if place < len(first) or these.any():
            spans = [(edges[i], edges[i + 1] - edges[i]) for i in np.flatnonzero(these)]
            panel.broken_barh(spans, (0, 1), color=colour, linewidth=0, label=name)
    panel.set_ylim(0, 1)
    panel.set_yticks([])
    panel.set_xlabel("time (s)", fontsize=8, loc="right")
    panel.legend(fontsize=7, ncols=6, loc="upper left", bbox_to_anchor=(0, -0.9))


def _draw_runs(panel: Any, nets: Mapping[str, Arrays]) -> None:
    """The share of runs that are at most so long."""
    for i, (name, arrays) in enumerate(nets.items()):
        runs = np.sort(arrays["run_seconds"])
        share = 100 * np.arange(1, len(runs) + 1) / len(runs)
        runs_told = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
        label = f"{name}: {runs_told}, median {np.median(runs):.2f} s"
        style = {"color": PALETTE[i % len(PALETTE)], "marker": ".", "markersize": 4}
        panel.plot(
            np.repeat(runs, 2), np.ravel([share - share[0], share], "F"), label=label, **style
        )
    panel.set_xscale("log")
    panel.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("")
    panel.set_xlabel("length of a run of one class (s)", fontsize=8)
    panel.set_ylabel("runs at most\nso long (%)", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)


def plot_tiles(path: Path, nets: Mapping[str, Arrays], formats: Sequence[str]) -> None:
    """Where tiles differ from the whole: the image with the cuts, a map for each net, and a curve.

    Args:
        nets: what the measure `tiles` stores, by net; all of the same image and tiles.
    """
    plt = pyplot()
    first = next(iter(nets.values()))
    aspect = first["used"][0] / first["used"][1]
    columns = 1 + len(nets)
    figure, axes = plt.subplot_mosaic(
        [[f"panel {i}" for i in range(columns)], ["curve"] * columns],
        figsize=(3.1 * columns, 3.1 * aspect + 2.6),
        height_ratios=(3.1 * aspect, 2.0),
        layout="constrained",
    )
    height, width = first["used"]
    panels = [axes[f"panel {i}"] for i in range(columns)]
    panels[0].imshow(first["picture"], extent=(0, width, height, 0))
    panels[0].set_title(f"{len(first['tiles'])} tiles of {first['tile']} pixels", fontsize=9)
    most = max(float(arrays["difference_map"].max()) for arrays in nets.values()) or 1.0
    for panel, (name, arrays) in zip(panels[1:], nets.items(), strict=True):
        values = 100 * arrays["difference_map"]
        panel.imshow(values, cmap="magma", vmin=0, vmax=100 * most, extent=(0, width, height, 0))
        panel.set_title(f"{name}: mean {values.mean():.1f} %", fontsize=9)
    for panel in panels:
        _draw_cuts(panel, first, "white" if panel is panels[0] else "#40c0ff")
        panel.tick_params(labelsize=7)
    bar = figure.colorbar(panels[-1].images[0], ax=panels, fraction=0.03, pad=0.01)
    what = "tiles with another label" if first["is_of_labels"] else "difference from the whole"
    bar.set_label(f"{what} (%)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    _draw_profiles(axes["curve"], nets, what)
    save_figure(figure, path, formats)


def _draw_cuts(panel: Any, arrays: Arrays, colour: str) -> None:
    """Where the tiles begin."""
    for start in {int(top) for top, _ in arrays["tiles"]} - {0}:
        panel.axhline(start, color=colour, linewidth=0.7)
    for start in {int(left) for _, left in arrays["tiles"]} - {0}:
        panel.axvline(start, color=colour, linewidth=0.7)
    panel.set_xlim(0, arrays["used"][1])
    panel.set_ylim(arrays["used"][0], 0)


def _draw_profiles(panel: Any, nets: Mapping[str, Arrays], what: str) -> None:
    """Mean and largest difference by the distance to the cut, a colour a net."""
    for i, (name, arrays) in enumerate(nets.items()):
        colour = PALETTE[i % len(PALETTE)]
        style = {"color": colour, "marker": ".", "markersize": 4}
        panel.plot(arrays["depth"], 100 * arrays["mean"], label=f"{name}: mean", **style)
        largest = 100 * arrays["largest"]
        panel.plot(arrays["depth"], largest, "--", label=f"{name}: largest", **style)
    panel.set_xlabel("pixels to the nearest cut edge", fontsize=8)
    panel.set_ylabel(f"{fill(what, 20)} (%)", fontsize=8)
    panel.set_ylim(bottom=0)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, ncols=2)
