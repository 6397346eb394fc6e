"""The effect of budgets of filters on the digits' ResNet-18: docs/aliasing.md.

    python benchmarks/aliasing_digits.py [--seeds 3] [--figure FILE.png]

The plain model is that of `distill.py`, trained by `train.py` on centred digits. Each choice of
sites starts from its weights with matched statistics and is fine-tuned on the same centred digits,
the plain model as well. Choices are those of budgets, and random ones for each budget: sites in a
random order, while the budget allows them. Existing results are read, not measured again; the table
and the figure have the choices measured so far.
"""

import argparse
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from distill import MATCHED, trained
from flax import nnx
from true_weights import ROOT, Results, table

import aa_flax
from aa_flax import antialias
from aa_flax.config import check_config
from aa_flax.data.batches import training_batches
from aa_flax.data.digits import Digits
from aa_flax.data.pixels import preprocess_batch
from aa_flax.evaluation.plots import new_figure, save_figure
from configs.digits_resnet18 import get_config

BUDGETS = (0.0, 0.001, 0.01, 0.1, 0.2, 1.0)  # of the FLOPs; the last one allows all sites
DRAWN = 3  # random choices for each budget
STEPS, RATE = 42, 3e-4  # of fine-tuning: two epochs
COLUMNS = {"centred": "top1", "shifted": "top1_shifted", "consistency": "consistency"}
CONFIG = check_config(get_config())
SIZES: dict[str, Any] = {**CONFIG.eval.to_dict(), "passes": 2, "resize_size": 0}
SIZES |= {name: CONFIG.data[name] for name in ("image_size", "crop_size")}
Layers = frozenset[str]


def digits(split: str) -> Digits:
    return Digits(split, CONFIG.data.image_size)


def plain_model(seed: int, folder: Path) -> tuple[Callable[[Any, Any], Any], Any]:
    """Returns the trained model as a function of its state and images, and the state."""
    workdir = folder / f"seed{seed}" / "plain"
    trained("digits_resnet18", workdir, f"--config.seed={seed}")
    model = aa_flax.create_model("resnet18", pretrained=workdir)
    model.eval()
    graph, state = nnx.split(model)
    return lambda state, images: nnx.merge(graph, state)(images), state


def batches(seed: int) -> list[Any]:
    found = training_batches(digits("train"), CONFIG.batch_size, CONFIG.data, seed=seed)
    return [(preprocess_batch(b, CONFIG.data), b["label"]) for b in islice(found, STEPS)]


def fine_tuned(f: Callable[[Any, Any], Any], state: Any, data: list[Any]) -> Any:
    """Returns the state after some steps of training, its batch statistics unchanged."""
    params, rest = nnx.split_state(state, nnx.Param, ...)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    @jax.jit
    def step(params: Any, moments: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> Any:
            logits = f(nnx.merge_state(params, rest), images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        changes, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, changes), moments

    moments = optimizer.init(params)
    for images, labels in data:
        params, moments = step(params, moments, images, jnp.asarray(labels))
    return nnx.merge_state(params, rest)


def choices(f: Any, state: Any, images: Any, seed: int) -> dict[str, tuple[Layers, float]]:
    """Returns the sites that budgets and random orders choose, and their cost in percent."""
    flops = dict(jax.jit(f).lower(state, images).cost_analysis() or {})["flops"]
    report = antialias.report(f, state, images)
    extra = {row.site.layer: 100 * row.extra_flops / flops for row in report.antialiased}
    rng, found = np.random.default_rng(seed), {}
    for budget in BUDGETS:
        paid = antialias(f, budget=budget).report(state, images).antialiased
        found[f"budget {100 * budget:g}"] = frozenset(row.site.layer for row in paid)
        for i in range(DRAWN):
            drawn, left = set(), 100 * budget
            for layer in rng.permutation(list(extra)).tolist():
                if extra[layer] <= left:
                    drawn.add(layer)
                    left -= extra[layer]
            found[f"random {100 * budget:g}, {i}"] = frozenset(drawn)
    return {name: (c, sum(extra[layer] for layer in c)) for name, c in found.items()}


def measure(seed: int, folder: Path, results: Results) -> None:
    f, state = plain_model(seed, folder)
    data = batches(seed)
    images = data[0][0][:MATCHED]
    known: dict[Layers, dict[str, float]] = {}

    def numbers(layers: Layers, cost: float) -> dict[str, float]:
        if layers not in known:
            run, start = f, state
            if layers:
                run = antialias(f, where=lambda site: site.layer in layers)
                start = aa_flax.match_statistics(run, f, images, state)
            tuned = fine_tuned(run, start, data)
            predict = lambda x: run(tuned, x)  # noqa: E731
            found = aa_flax.evaluate(predict, digits("val"), ("accuracy", "shift"), **SIZES)
            flat = {**found, **found["shift"]}
            known[layers] = {name: flat[key] for name, key in COLUMNS.items()}
            known[layers] |= {"cost": cost, "filters": len(layers)}
        return known[layers]

    for name, (layers, cost) in choices(f, state, images, seed).items():
        results.measure(
            f"seed {seed}", name, lambda layers=layers, cost=cost: numbers(layers, cost)
        )


def lines(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns the rows of the table: means over seeds, and for random choices over draws."""
    rows = []
    for budget in (f"{100 * b:g}" for b in BUDGETS):
        for kind in (f"budget {budget}", f"random {budget}"):
            seeds = found.values()
            runs = [run for seed in seeds for n, run in seed.items() if n.split(",")[0] == kind]
            if runs and not (kind.startswith("random") and budget in ("0", "100")):  # no choice
                means = (np.mean([run[name] for run in runs]) for name in ("filters", "cost"))
                cells = [f"{mean:.2g}" for mean in means]
                cells += [cell([run[name] for run in runs]) for name in COLUMNS]
                rows.append([budget if kind[0] == "b" else f"{budget}, at random", *cells])
    return rows


def cell(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 and np.ptp(values) > 0 else ""
    return f"{np.mean(values):.1f}{spread}"


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Plots consistency and accuracy of every choice over its cost."""
    figure, (panels,) = new_figure(1, 2, (8.0, 3.4))
    runs = [(name, run) for seed in found.values() for name, run in seed.items()]
    labels = {"consistency": "consistency (%)", "shifted": "accuracy, shifted (%)"}
    for panel, (column, label) in zip(panels, labels.items(), strict=True):
        for kind, style in (("random", "o"), ("budget", "s-" if len(found) == 1 else "s")):
            points = sorted((run["cost"], run[column]) for n, run in runs if n.startswith(kind))
            title = "budget=" if kind == "budget" else "random choices"
            panel.plot(*zip(*points, strict=True), style, alpha=0.7, label=title)
        panel.set(xlabel="additional FLOPs (%)", ylabel=label)
    panels[0].legend(fontsize=8)
    save_figure(figure, path, (".png",))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/distill")
    parser.add_argument("--results", type=Path, default=ROOT / "runs/aliasing_digits.json")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    results = Results(args.results)
    for seed in range(args.seeds):
        measure(seed, args.folder, results)
    head = ["budget (%)", "filters", "FLOPs (%)", *COLUMNS]
    print(table(head, lines(results.found)))
    if args.figure:
        draw(args.figure, results.found)


if __name__ == "__main__":
    main()
