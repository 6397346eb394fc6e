"""The aliasing of models with true weights, and the effect of budgets: docs/aliasing.md.

    python benchmarks/aliasing.py profile [--figure FILE.png]
    python benchmarks/aliasing.py budget [--figure FILE.png]

`profile` measures the trunks of AlexNet, VGG16 and MobileNetV2 on photographs (those of
`packaged.py`). `budget` compares the sites that `antialias(f, budget=...)` chooses with
every other choice on the same MobileNetV2, by the distance that a shift moves its pooled features.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from true_parity import our_trunk
from true_weights import (
    COMPARED,
    CROP,
    REACH,
    feature_distance,
    opened,
    outputs_under_shifts,
    table,
)

from aa_flax import antialias
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.plots import new_figure, plot_aliasing, save_figure

TRUNKS = ("alexnet", "vgg16", "mobilenet_v2")
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1)
MOVES = (1, 2, 4, 8)  # pixels
Stateful = Callable[[Any, Array], Array]  # function of a model's state and images


class Choice(NamedTuple):
    """Filters at some layers, their cost, and the resulting model's stability."""

    layers: frozenset[str]
    cost: float  # percent of the model's FLOPs
    value: float  # distance that shifts move pooled features, percent


def pooled(model: nnx.Module) -> tuple[Stateful, Any]:
    """Returns the mean of a trunk's last map as a function of its state and images, and the state.

    The state is an argument, so that the layers get names.
    """
    model.eval()
    graphdef, state = nnx.split(model)
    return lambda state, images: nnx.merge(graphdef, state)(images)[-1].mean((1, 2)), state


def photographs() -> np.ndarray:
    return opened(None)[0][:COMPARED]


def profiles(figure: Path | None) -> None:
    """Prints and plots the aliasing at every site, before and after `antialias`."""
    middle = photographs()[:, REACH : REACH + CROP, REACH : REACH + CROP]
    images, lines, curves = normalise(jnp.asarray(middle)), [], {}
    for name in TRUNKS:
        f, state = pooled(our_trunk(name))
        before, after = (
            antialias.profile(run, state, images, lie="NHWC") for run in (f, antialias(f))
        )
        curves |= {name: before.arrays(), f"antialias({name})": after.arrays()}
        for plain, filtered in zip(before, after, strict=True):
            numbers = [(r.aliasing_energy, r.damage, r.lie_share) for r in (plain, filtered)]
            cells = [f"{100 * value:.1f}" for pair in zip(*numbers, strict=True) for value in pair]
            site = f"{plain.site.kind} {plain.site.window[0]}x{plain.site.window[1]}"
            lines.append([name, plain.site.layer, site, *cells])
        print(f"{name} is measured", file=sys.stderr, flush=True)
    head = ["energy (%)", "with antialias", "damage (%)", "with antialias"]
    head += ["Lie derivative (%)", "with antialias"]
    print(table(["model", "layer", "site", *head], lines))
    if figure:
        plot_aliasing(figure, curves)


def with_filters(f: Stateful, layers: frozenset[str]) -> Stateful:
    return antialias(f, where=lambda site: site.layer in layers) if layers else f


def measured(
    f: Stateful, example: tuple[Any, Array], value: Callable[[Stateful], float]
) -> tuple[list[Choice], dict[float, Choice]]:
    """Measures all choices of layers, and those of the budgets."""
    rows = antialias.report(f, *example).antialiased
    extra = {row.site.layer: row.extra_flops for row in rows}
    flops = dict(jax.jit(f).lower(*example).cost_analysis() or {})["flops"]
    known: dict[frozenset[str], Choice] = {}

    def choice(layers: frozenset[str]) -> Choice:
        if layers not in known:
            cost = 100 * sum(extra[layer] for layer in layers) / flops
            known[layers] = Choice(layers, cost, value(with_filters(f, layers)))
            progress = f"{len(layers)} layers, {cost:.2f} %: {known[layers].value:.2f}"
            print(progress, file=sys.stderr, flush=True)
        return known[layers]

    others = [choice(layers) for layers in subsets(list(extra))]
    chosen = {}
    for budget in BUDGETS:
        paid = antialias(f, budget=budget).report(*example).antialiased
        chosen[budget] = choice(frozenset(row.site.layer for row in paid))
    return others, chosen


def subsets(layers: list[str]) -> Iterator[frozenset[str]]:
    sizes = range(len(layers) + 1)
    yield from (frozenset(c) for n in sizes for c in combinations(layers, n))


def mobilenet() -> tuple[list[Choice], dict[float, Choice]]:
    images = photographs()
    middle = jnp.asarray(images[:, REACH : REACH + CROP, REACH : REACH + CROP])

    def distance(f: Stateful) -> float:
        predict = jax.jit(lambda state, x: f(state, normalise(x)))
        found = outputs_under_shifts(lambda x: np.asarray(predict(state, x)), images, MOVES)
        still = found[0][:, :, 0]
        scale = np.mean(
            [feature_distance(still, np.roll(still, i, 0)) for i in range(1, len(still))]
        )
        moved = np.mean([feature_distance(found[0], found[d]) for d in MOVES])
        return float(100 * moved / scale)

    f, state = pooled(our_trunk("mobilenet_v2"))
    return measured(f, (state, normalise(middle)), distance)


def budgets(figure: Path | None) -> None:
    """Prints and plots the gain of the budgets' choices, and of all others."""
    choices, chosen = mobilenet()
    lines = []
    for budget, choice in chosen.items():
        within = [other.value for other in choices if other.cost <= 100 * budget]
        values = (choice.value, min(within), np.mean(within), max(within))
        counts = [f"{100 * budget:g}", f"{len(choice.layers)}", f"{choice.cost:.1f}"]
        lines.append([*counts, *(f"{value:.2f}" for value in values)])
    head = ["budget (%)", "filters", "FLOPs (%)", "features moved (%)"]
    print(table([*head, "least within the budget", "mean", "most"], lines))
    if figure:
        drawn, ((panel,),) = new_figure(1, 1, (5.0, 3.6))
        ordered = sorted(set(chosen.values()), key=lambda choice: choice.cost)
        for shown, style in ((choices, "o"), (ordered, "s-")):
            points = [(choice.cost, choice.value) for choice in shown]
            label = "every choice" if shown is choices else "budget="
            panel.plot(*zip(*points, strict=True), style, label=label)
        panel.set(xlabel="additional FLOPs (%)", ylabel="features moved (%)", ylim=(0, None))
        panel.legend(fontsize=8)
        save_figure(drawn, figure, (".png",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("profile", "budget"))
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    if args.part == "profile":
        profiles(args.figure)
    else:
        budgets(args.figure)


if __name__ == "__main__":
    main()
