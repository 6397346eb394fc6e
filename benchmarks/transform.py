"""The cost of `aa_flax.antialias`: a model's forward pass, plain and with each site antialiased.

    python benchmarks/transform.py [--model mobilenet_v2] [--batch 4] [--size 128] [--repeats 7]

For each site, the forward pass with that site alone antialiased, then with all of them, compared
with the plain model's. Milliseconds, medians.
"""

import argparse

import jax
import jax.numpy as jnp
from flax import nnx
from timing import median_ms

from aa_flax import antialias, create_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    graphdef, state = nnx.split(create_model(args.model))
    x = jnp.zeros((args.batch, args.size, args.size, 3))

    def forward(state, x):
        return nnx.merge(graphdef, state)(x)

    def time(f) -> float:
        compiled = jax.jit(f)
        return median_ms(lambda: jax.block_until_ready(compiled(state, x)), args.repeats)

    plain = time(forward)
    print(f"{args.model}, {x.shape}; jax {jax.__version__} on {jax.devices()[0].device_kind}\n")
    print("| site | ms | over plain | extra MFLOP |\n|---|---|---|---|")
    print(f"| plain | {plain:.1f} | | |")
    report = antialias.report(forward, state, x)
    for row in report.antialiased:
        ms = time(antialias(forward, where=lambda site, row=row: site == row.site))
        name = f"{row.site.kind}, {row.site.layer}"
        print(f"| {name} | {ms:.1f} | {ms - plain:+.1f} | {row.extra_flops / 1e6:+.1f} |")
    ms = time(antialias(forward))
    print(f"| all | {ms:.1f} | {ms - plain:+.1f} | {report.extra_flops / 1e6:+.1f} |")


if __name__ == "__main__":
    main()
