"""Where models with true weights alias, and what a budget of filters buys: docs/aliasing.md.

    python benchmarks/aliasing.py profile [--figure FILE.png]
    python benchmarks/aliasing.py budget [--run FOLDER] [--figure FILE.png]

`profile` measures the trunks of AlexNet, VGG16 and MobileNetV2 on twenty photographs (`packaged.py`
says where they come from). `budget` compares the sites that `antialias(f, budget=...)` chooses with
all other choices of as many FLOPs: on the same MobileNetV2, and with `--run` on the ResNet-18 of
that run, trained on digits.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from true_parity import our_trunk
from true_weights import CROP, Images, answers_to_shifts, cut, opened, table

from aa_flax import antialias, create_model
from aa_flax.data.digits import Digits
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.plots import ALL_FORMATS, new_figure, plot_aliasing, save_figure
from aa_flax.transform import Site

TRUNKS = ("alexnet", "vgg16", "mobilenet_v2")
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RANDOM = 24  # choices at random, where there are too many to measure all
F = Callable[[Array], Array]


class Choice(NamedTuple):
    """Filters at some sites: what they cost, and what a model is then like."""

    sites: frozenset[Site]
    cost: float  # percent of the model's FLOPs
    steadiness: float  # percent; see `features_kept` and `consistency`


def pooled(model: nnx.Module) -> F:
    """Returns the mean of a trunk's last map, of normalised images."""
    model.eval()
    return lambda images: model(images)[-1].mean((1, 2))


def profile_tables(figure: Path | None) -> None:
    """Prints the mean over sites, and draws every site."""
    images, _ = opened(None)
    middle = normalise(jnp.asarray(images[:, 32 : 32 + CROP, 32 : 32 + CROP]))
    lines, curves = [], {}
    for name in TRUNKS:
        f = pooled(our_trunk(name))
        for title, run in ((name, f), (f"antialias({name})", antialias(f))):
            profile = antialias.profile(run, middle)
            curves[title] = profile.arrays()
            for row in profile:
                energy, damage = 100 * row.aliasing_energy, 100 * row.damage
                kind = f"{row.site.kind} {row.site.window[0]}x{row.site.window[0]}"
                lines.append([title, row.site.layer, kind, f"{energy:.1f}", f"{damage:.1f}"])
    print(table(["model", "layer", "site", "aliasing energy (%)", "damage (%)"], lines))
    if figure:
        plot_aliasing(figure, {n: c for n, c in curves.items() if "mobilenet" in n})


def choices(f: F, example: Array, steadiness: Callable[[F], float], seed: int = 0) -> None:
    pass
