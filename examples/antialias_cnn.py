"""A small custom CNN, plain and antialiased by `aa_flax.antialias`, on the digits.

    python examples/antialias_cnn.py [--epochs 30] [--seeds 3] [--pools binomial4 aps_l2 ...]

The model is a plain function of its parameters, with strides in two convolutions and a max pool.
All versions are trained on centred digits; then accuracy and consistency are measured on digits
moved by 0 to 8 pixels, and consistency on rolled digits. Prints a Markdown table in percent, mean ±
standard deviation, and the milliseconds for 256 images, median of 9.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import aa_flax
from aa_flax.data.digits import Digits

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {"crop_size": 32, "image_size": 40, "resize_size": 0, "shift_range": 9}
WIDTHS = (3, 16, 32, 64)


def initial(key: jax.Array) -> dict[str, jax.Array]:
    """Returns kernels of three convolutions and one linear layer."""
    keys = jax.random.split(key, len(WIDTHS))
    params = {
        f"conv{i}": jax.random.normal(keys[i], (3, 3, m, n)) * (2 / (9 * m)) ** 0.5
        for i, (m, n) in enumerate(pairwise(WIDTHS))
    }
    return params | {"linear": jax.random.normal(keys[-1], (WIDTHS[-1], 10)) * 0.1}


def model(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Returns 10 logits of images `(N, H, W, 3)`."""
    x = images
    for i, stride in enumerate((1, 2, 2)):
        x = lax.conv_general_dilated(
            x,
            params[f"conv{i}"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x)
        if i == 0:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.mean((1, 2)) @ params["linear"]


def train(model: Callable, seed: int, epochs: int, batch: int = 64) -> dict[str, jax.Array]:
    """Trains with Adam on the centred digits."""
    digits = Digits("train", 32)
    images = jnp.stack([jnp.asarray(digits[i]["image"]) for i in range(len(digits))])
    images = ((images / 255 - MEAN) / STD).astype(jnp.float32)
    labels = jnp.array([digits[i]["label"] for i in range(len(digits))])
    steps = len(labels) // batch * epochs
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def loss(params, images, labels):
        logits = model(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs + 1)])
    params = initial(jax.random.key(seed))
    state = optimizer.init(params)
    for chosen in order[: steps * batch].reshape(steps, batch):
        params, state = step(params, state, images[chosen], labels[chosen])
    return params


def milliseconds(predict: Callable) -> float:
    """Returns the median time of a forward pass of 256 images."""
    images, times = jnp.zeros((256, 32, 32, 3)), []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(predict(images))
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[1:]))  # the first one compiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pools", nargs="+", default=["binomial4"], help="those without weights")
    args = parser.parse_args()
    models = {"plain": model} | {f"`{p}`": aa_flax.antialias(model, pool=p) for p in args.pools}
    print("| pool | centred | shifted | consistency | rolled | ms |\n|---|---|---|---|---|---|")
    for name, function in models.items():
        rows = []
        for seed in range(args.seeds):
            predict = jax.jit(partial(function, train(function, seed, args.epochs)))
            measures = ("accuracy", "shift", "circular")
            results = aa_flax.evaluate(predict, Digits("val", 40), measures, **SIZES)
            shift, rolled = results["shift"], results["circular"]["consistency"]
            rows.append((results["top1"], shift["top1_shifted"], shift["consistency"], rolled))
        mean, spread = np.mean(rows, 0), np.std(rows, 0, ddof=min(1, len(rows) - 1))
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, spread, strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {milliseconds(predict):.1f} |", flush=True)


if __name__ == "__main__":
    main()
