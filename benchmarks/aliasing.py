"""Where models with true weights alias, and what a budget of filters buys: docs/aliasing.md.

    python benchmarks/aliasing.py profile [--figure FILE.png]
    python benchmarks/aliasing.py budget [--run FOLDER] [--figure FILE.png]

`profile` measures the trunks of AlexNet, VGG16 and MobileNetV2 on photographs (`packaged.py` says
where they come from). `budget` compares the sites that `antialias(f, budget=...)` chooses with
every other choice: on the same MobileNetV2, by the distance that a shift moves its pooled features;
with `--run` on the ResNet-18 of that run, trained on digits, by its consistency, with choices at
random.
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
from true_weights import COMPARED, CROP, REACH, answers_to_shifts, feature_distance, opened, table

from aa_flax import antialias, create_model, evaluate
from aa_flax.configs import digits_resnet18
from aa_flax.data.digits import Digits
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.plots import colour_of, new_figure, plot_aliasing, save_figure

TRUNKS = ("alexnet", "vgg16", "mobilenet_v2")
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RANDOM = 10  # choices, where there are too many to measure all
MOVES = (1, 2, 4, 8)  # pixels
Stateful = Callable[[Any, Array], Array]  # of a model's state and images


class Choice(NamedTuple):
    """Filters at some layers, what they cost, and what a model is then like."""

    layers: frozenset[str]
    cost: float  # percent of the model's FLOPs
    value: float  # of the steadiness, percent


def pooled(model: nnx.Module) -> tuple[Stateful, Any]:
    """Returns the mean of a trunk's last map as a function of its state and images, and the state.

    As an argument, the state gives the layers their names.
    """
    model.eval()
    graphdef, state = nnx.split(model)
    return lambda state, images: nnx.merge(graphdef, state)(images)[-1].mean((1, 2)), state


def photographs() -> np.ndarray:
    return opened(None)[0][:COMPARED]


def profiles(figure: Path | None) -> None:
    """Prints and draws the aliasing at every site, before and after `antialias`."""
    middle = photographs()[:, REACH : REACH + CROP, REACH : REACH + CROP]
    images, lines, curves = normalise(jnp.asarray(middle)), [], {}
    for name in TRUNKS:
        f, state = pooled(our_trunk(name))
        before, after = (antialias.profile(run, state, images) for run in (f, antialias(f)))
        curves |= {name: before.arrays(), f"antialias({name})": after.arrays()}
        for plain, filtered in zip(before, after, strict=True):
            numbers = [(row.aliasing_energy, row.damage) for row in (plain, filtered)]
            cells = [f"{100 * value:.1f}" for pair in zip(*numbers, strict=True) for value in pair]
            site = f"{plain.site.kind} {plain.site.window[0]}x{plain.site.window[1]}"
            lines.append([name, plain.site.layer, site, *cells])
        print(f"{name} is measured", file=sys.stderr, flush=True)
    head = ["energy (%)", "with antialias", "damage (%)", "with antialias"]
    print(table(["model", "layer", "site", *head], lines))
    if figure:
        plot_aliasing(figure, curves)


def with_filters(f: Stateful, layers: frozenset[str]) -> Stateful:
    return antialias(f, where=lambda site: site.layer in layers) if layers else f


def measured(
    f: Stateful, example: tuple[Any, Array], value: Callable[[Stateful], float], count: int | None
) -> tuple[list[Choice], dict[float, Choice]]:
    """Measures choices of layers, all or `count` at random, and those of the budgets."""
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

    others = [choice(layers) for layers in subsets(list(extra), count)]
    chosen = {}
    for budget in BUDGETS:
        paid = antialias(f, budget=budget).report(*example).antialiased
        chosen[budget] = choice(frozenset(row.site.layer for row in paid))
    return others, chosen


def subsets(layers: list[str], count: int | None) -> Iterator[frozenset[str]]:
    """Yields all subsets, or none, all and `count` at random."""
    if count is None:
        sizes = range(len(layers) + 1)
        yield from (frozenset(c) for n in sizes for c in combinations(layers, n))
        return
    rng = np.random.default_rng(0)
    yield from (frozenset(), frozenset(layers))
    for _ in range(count):
        yield frozenset(np.array(layers)[rng.random(len(layers)) < rng.random()].tolist())


def print_choices(title: str, others: list[Choice], chosen: dict[float, Choice]) -> None:
    lines = []
    for budget, choice in chosen.items():
        affordable = [other.value for other in others if other.cost <= 100 * budget]
        ends = (min(affordable), np.mean(affordable), max(affordable))
        cells = [f"{value:.1f}" for value in (choice.value, *ends)]
        counts = [f"{len(choice.layers)}", f"{choice.cost:.1f}"]
        lines.append([f"{100 * budget:g} %", *counts, *cells])
    head = ["budget", "filters", "FLOPs (%)", title, "least", "mean", "most"]
    print(table([*head[:4], *(f"{name} of the choices within it" for name in head[4:])], lines))


def mobilenet() -> tuple[str, list[Choice], dict[float, Choice]]:
    images = photographs()
    middle = jnp.asarray(images[:, REACH : REACH + CROP, REACH : REACH + CROP])

    def distance(f: Stateful) -> float:
        predict = jax.jit(lambda state, x: f(state, normalise(x)))
        found = answers_to_shifts(lambda x: np.asarray(predict(state, x)), images, MOVES)
        still = found[0][:, :, 0]
        scale = np.mean(
            [feature_distance(still, np.roll(still, i, 0)) for i in range(1, len(still))]
        )
        moved = np.mean([feature_distance(found[0], found[d]) for d in MOVES])
        return float(100 * moved / scale)

    f, state = pooled(our_trunk("mobilenet_v2"))
    return "features moved (%)", *measured(f, (state, normalise(middle)), distance, None)


def digits(run: Path) -> tuple[str, list[Choice], dict[float, Choice]]:
    config = digits_resnet18.get_config()
    source, size = Digits("val", config.data.image_size), config.data.crop_size
    model = create_model("resnet18", pretrained=run)
    model.eval()
    crops = np.stack([source[i]["image"][:size, :size] for i in range(64)])
    options: Any = {"image_size": config.data.image_size, "crop_size": size}
    options |= {"shift_range": config.eval.shift_range, "passes": 5, "resize_size": 0}

    graphdef, state = nnx.split(model)

    def consistency(f: Stateful) -> float:
        predict = lambda images: f(state, images)  # noqa: E731
        return evaluate(predict, source, ["shift"], **options)["shift"]["consistency"]

    def logits(state: Any, images: Array) -> Array:
        return nnx.merge(graphdef, state)(images)

    example = state, normalise(jnp.asarray(crops))
    return "consistency (%)", *measured(logits, example, consistency, RANDOM)


def budgets(run: Path | None, figure: Path | None) -> None:
    """Prints and draws what the choices of budgets gain, next to others."""
    studies = {"MobileNetV2": mobilenet()} | ({"ResNet-18 on digits": digits(run)} if run else {})
    for name, (title, others, chosen) in studies.items():
        print(f"\n{name}\n")
        print_choices(title, others, chosen)
    if not figure:
        return
    drawn, panels = new_figure(1, len(studies), (4.6 * len(studies), 3.6))
    for panel, (name, (title, others, chosen)) in zip(panels.flat, studies.items(), strict=True):
        ordered = sorted(set(chosen.values()), key=lambda choice: choice.cost)
        points = [(c.cost, c.value) for c in others]
        panel.plot(*zip(*points, strict=True), "o", color="#999999", label="other choices", ms=4)
        line = [(c.cost, c.value) for c in ordered]
        panel.plot(*zip(*line, strict=True), "s-", color=colour_of(0), label="budget=")
        panel.set(xscale="symlog", xlabel="additional FLOPs (%)", ylabel=title, title=name)
        panel.legend(fontsize=8)
    save_figure(drawn, figure, (".png",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("profile", "budget"))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    if args.part == "profile":
        profiles(args.figure)
    else:
        budgets(args.run, args.figure)


if __name__ == "__main__":
    main()
