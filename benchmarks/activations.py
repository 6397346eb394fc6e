"""The effect of `antialias(f, activations=2)` on VGG16 with true weights: docs/antialias.md.

    python benchmarks/activations.py [--images 8] [--size 128] [--moves 4]

The EQ-T of each pool's map in decibels (Karras et al. 2021, Eq. 3): the map of a moved photograph
against the moved map of the photograph. `packaged.py` has the weights and photographs.
Photographs move cyclically by real numbers of pixels, uniform up to an eighth of their side, as
band-limited signals, and so do maps; all layers pad circularly.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from true_parity import our_trunk
from true_weights import opened, table

from aa_flax import antialias
from aa_flax.data.pixels import center_crop, normalise
from aa_flax.evaluation.shifts import shift_band_limited
from aa_flax.ops import circular_padding

VARIANTS = {
    "VGG16": None,
    "activations alone": {"activations": 2, "where": lambda site: site.kind == "activation"},
    "`antialias(f)`": {},
    "`antialias(f, activations=2)`": {"activations": 2},
    '`antialias(f, pool="ideal")`': {"pool": "ideal"},
    '`antialias(f, pool="ideal", activations=2)`': {"pool": "ideal", "activations": 2},
}
Maps = Sequence[Array | np.ndarray]


def pools(graph: nnx.GraphDef, state: nnx.State, images: Array) -> Maps:
    """Returns the map after each of VGG's five pools."""
    x: Array = images
    maps: list[Array] = []
    for name, block in nnx.merge(graph, state).net.feature_blocks():
        x = block(x)
        maps += [x] if name.startswith("pool") else []
    return maps


def squared_errors(f, state, images: Array, shifts: Array) -> tuple[Maps, Array]:
    """Returns maps of the images, and the mean squared error of those of moved images."""
    with circular_padding():
        still = f(state, normalise(images))
        moved = f(state, normalise(shift_band_limited(images, shifts)))
    errors = []
    for x, y in zip(still, moved, strict=True):
        stride = images.shape[1] // x.shape[1]
        errors.append(jnp.mean((shift_band_limited(x, shifts / stride) - y) ** 2))
    return still, jnp.stack(errors)


def measured(args: argparse.Namespace) -> Iterator[list[str]]:
    graph, state = nnx.split(our_trunk("vgg16"))
    images = center_crop(jnp.asarray(opened(None)[0][: args.images], jnp.float32), args.size)
    rng = np.random.default_rng(0)
    moves = rng.uniform(-args.size / 8, args.size / 8, (args.moves, args.images, 2))
    plain: Maps = []
    for name, options in VARIANTS.items():

        def f(state, images):
            return pools(graph, state, images)

        flops, extra = dict(jax.jit(f).lower(state, images[:1]).cost_analysis() or {})["flops"], 0
        if options is not None:
            with circular_padding():
                extra = antialias.report(antialias(f, **options), state, images[:1]).extra_flops
            f = antialias(f, **options)
        run, maps, errors = jax.jit(lambda *given, f=f: squared_errors(f, *given)), [], []
        for image, own in zip(images, moves.swapaxes(0, 1), strict=True):
            found = [run(state, image[None], jnp.asarray(move[None], jnp.float32)) for move in own]
            maps.append(found[0][0])
            errors.append(np.mean([error for _, error in found], 0))
        stacked = [np.concatenate(level) for level in zip(*maps, strict=True)]
        ranges = np.array([level.max() - level.min() for level in stacked])
        decibels = 10 * np.log10(ranges**2 / np.mean(errors, 0))
        plain = plain or stacked
        change = np.linalg.norm(stacked[-1] - plain[-1]) / np.linalg.norm(plain[-1])
        print(f"{name} is measured", file=sys.stderr, flush=True)
        cells = [f"{value:.1f}" for value in decibels]
        yield [name, *cells, f"{100 * change:.0f}", f"{(flops + extra) / 1e9:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--moves", type=int, default=4)
    levels = [f"pool {i}" for i in range(1, 6)]
    head = ["model", *levels, "change (%)", "GFLOP"]
    print(table(head, list(measured(parser.parse_args()))))


if __name__ == "__main__":
    main()
