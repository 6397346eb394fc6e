"""Times of all pools, forward and gradient, for (8, 56, 56, 256) with stride 2.

    python benchmarks/pools.py [--repeats 7] [--pools ideal,lps]

Milliseconds, medians and quartiles of calls of a jitted function, in evaluation mode; the last
columns divide by BlurPool of 4 taps.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.pools import list_pools, make_pool, pool_factory, subsample

SHAPE = (8, 56, 56, 256)
POOLS = (
    "binomial4", "average", "gaussian5", "kaiser7", "ideal", "learned3",
    "aps_l2", "aps_l1", "aps_linf", "aps_lpf3", "lps",
)  # fmt: skip


def quartiles_ms(run, repeats: int) -> np.ndarray:
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return 1e3 * np.quantile(times, [0.25, 0.5, 0.75])


def times(name: str, x: jax.Array, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    pool = make_pool(pool_factory(None, name), 2, features=SHAPE[-1], rngs=nnx.Rngs(0))
    pool.eval()
    graph, state = nnx.split(pool)

    def run(state, x):
        return subsample(nnx.merge(graph, state), x)

    forward = jax.jit(run)
    backward = jax.jit(lambda state, x, g: jax.vjp(lambda x: run(state, x), x)[1](g))
    g = jnp.ones_like(forward(state, x))
    return (
        quartiles_ms(lambda: forward(state, x), repeats),
        quartiles_ms(lambda: backward(state, x, g), repeats),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pools", default=",".join(POOLS))
    args = parser.parse_args()
    names = args.pools.split(",")
    if unknown := set(names) - {*list_pools(), *POOLS}:
        parser.error(f"unknown pools {', '.join(sorted(unknown))}")
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {SHAPE}\n")
    print("| pool | forward | backward | over BlurPool | backward |\n|---|---|---|---|---|")
    x = jax.random.normal(jax.random.key(0), SHAPE)
    of_blur = times("binomial4", x, args.repeats)
    for name in names:
        both = of_blur if name == "binomial4" else times(name, x, args.repeats)
        cells = [f"{t[1]:.1f} ({t[0]:.1f} to {t[2]:.1f})" for t in both]
        cells += [f"{t[1] / b[1]:.1f}" for t, b in zip(both, of_blur, strict=True)]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
