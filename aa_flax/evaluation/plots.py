"""Figures, with matplotlib (the extra `plots`), which is imported only when one is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from aa_flax.errors import InputError
from aa_flax.evaluation.equivariance import EquivarianceMaps
from aa_flax.evaluation.row import Row


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


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot().close(figure)


def plot_diagonal(
    path: Path,
    probabilities: Mapping[str, Float[np.ndarray, "images offsets"]],
    images: Sequence[int],
) -> None:
    """The true class's probability along the diagonal, a panel an image, a line a net."""
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
        for name, values in probabilities.items():
            panel.plot(values[image], marker=".", label=name)
        panel.set_title(f"image {image}", fontsize=10)
        panel.set_ylim(-0.02, 1.02)
        panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("diagonal shift in pixels")
    for panel in axes[:, 0]:
        panel.set_ylabel("P(true class)")
    for panel in axes.flat[len(images) :]:
        panel.set_axis_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    _save(figure, path)


def plot_equivariance(path: Path, nets: Mapping[str, EquivarianceMaps]) -> None:
    """Heat maps of every block, a row a net, as the paper's figure 5.

    Blue is no distance; red, as in the paper, half the distance between two different images or
    more. Below each map stands its mean as a share of that distance.
    """
    plt = pyplot()
    columns = max(len(maps.blocks) for maps in nets.values())
    figure, axes = plt.subplots(
        len(nets),
        columns,
        figsize=(1.25 * columns, 1.7 * len(nets) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for row, (name, maps) in zip(axes, nets.items(), strict=True):
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
        for panel in row[len(maps.blocks) :]:
            panel.set_axis_off()
        for i, panel in enumerate(row[: len(maps.blocks)]):
            relative = maps.maps[i] / maps.scale[i]
            panel.imshow(relative, cmap="RdYlBu_r", vmin=0, vmax=0.5)
            stride = "" if i == len(maps.blocks) - 1 else f" [{maps.strides[i]}]"
            panel.set_title(maps.blocks[i] + stride, fontsize=8)
            panel.set_xlabel(f"{100 * relative.mean():.1f} %", fontsize=8)
        row[0].set_ylabel(name, fontsize=9)
    period = next(iter(nets.values())).maps.shape[-1]
    bar = figure.colorbar(axes[0, 0].images[0], ax=axes, fraction=0.02, pad=0.01)
    bar.set_label("distance / distance of two images", fontsize=8)
    figure.suptitle(
        f"Deviation from shift-equivariance at shifts of 0..{period - 1} pixels (down, right); "
        "[stride]",
        fontsize=10,
    )
    _save(figure, path)


class Point(NamedTuple):
    """A net in a figure of two numbers; nets of one family share a colour.

    Attributes:
        filter_size: None: the family's baseline.
    """

    family: str
    filter_size: int | None
    x: float
    y: float


def points(rows: Sequence[Row], x: tuple[str, ...], y: tuple[str, ...]) -> list[Point]:
    """The means of two numbers of each row that has both; see `Row.values`."""
    found = [(row, row.point(x, y)) for row in rows]
    return [
        Point(f"{row.base} {row.label}".strip(), row.filter_size, *point)
        for row, point in found
        if point is not None
    ]


def plot_nets(path: Path, nets: Sequence[Point], x_label: str, y_label: str) -> None:
    """A point a net, a colour a family, an arrow from each baseline to its antialiased nets."""
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(8, 6))
    families = list(dict.fromkeys(net.family for net in nets))
    palette = plt.get_cmap("tab10" if len(families) <= 10 else "tab20")
    colours = {family: palette(i % palette.N) for i, family in enumerate(families)}
    baselines = {net.family: (net.x, net.y) for net in nets if net.filter_size is None}
    for net in nets:
        colour, plain = colours[net.family], net.filter_size is None
        panel.plot(net.x, net.y, "o" if plain else "s", color=colour, markersize=6)
        label = net.family if plain else str(net.filter_size)
        place, style = {"xytext": (4, 4), "textcoords": "offset points"}, {"fontsize": 8}
        panel.annotate(label, (net.x, net.y), color=colour, **place, **style)
        if not plain and net.family in baselines:
            arrow = {"arrowstyle": "->", "color": colour, "alpha": 0.35}
            panel.annotate("", (net.x, net.y), xytext=baselines[net.family], arrowprops=arrow)
    panel.set_xlabel(x_label)
    panel.set_ylabel(y_label)
    panel.grid(alpha=0.3)
    panel.set_title("circles: baselines; squares: antialiased, with the filter size", fontsize=9)
    _save(figure, path)


def plot_run_times(path: Path, families: Mapping[str, Mapping[int | None, float]]) -> None:
    """A line a net, the fastest at the top: its baseline's time and that of every filter size.

    Args:
        families: milliseconds by net and filter size; None: the baseline.
    """
    plt = pyplot()
    names = sorted(families, key=lambda name: -min(families[name].values()))
    figure, panel = plt.subplots(figsize=(7, 0.35 * len(names) + 1.2))
    sizes = {k for family in families.values() for k in family}
    for k in sorted(sizes, key=lambda k: k or 0):
        timed = [name for name in names if k in families[name]]
        label, marker = ("baseline", "o") if k is None else (f"filter size {k}", f"${k}$")
        times = [families[name][k] for name in timed]
        heights = [names.index(name) for name in timed]
        panel.plot(times, heights, linestyle="none", marker=marker, label=label, alpha=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set_xlabel("forward pass (ms)")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    _save(figure, path)
