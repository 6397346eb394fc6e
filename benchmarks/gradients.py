"""Differences of gradients from the original's: the second table of docs/fidelity.md.

    python benchmarks/gradients.py [--models resnet18_lpf4 ...] [--size 96] [--batch 8]

One step of each model without dropout, in float32 and float64, ours and the original's, from the
same random weights, images and labels. For every tensor, the largest difference of its gradient is
divided by the gradient's largest value; the table has the maximum over all tensors.
"""

import argparse
import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from reference import reference_model, relative_difference

from aa_flax import create_model, load_torch_state_dict, to_torch_state_dict

FAMILIES = ["alexnet_lpf4", "vgg11_bn_lpf4", "resnet18_lpf4", "densenet121_lpf4"]
FAMILIES += ["mobilenet_v2_lpf4"]
Gradients = dict[str, np.ndarray]


def torch_gradients(model: torch.nn.Module, x: np.ndarray, labels, dtype) -> Gradients:
    model = copy.deepcopy(model).to(dtype)
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy()).to(dtype)
    torch.nn.functional.cross_entropy(model(images), torch.tensor(labels)).backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def our_gradients(reference: torch.nn.Module, name: str, x: np.ndarray, labels, dtype) -> Gradients:
    model = load_torch_state_dict(create_model(name, num_classes=10), reference.state_dict())
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.Dropout):
            layer.rate = 0.0
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, (params, rest)
    )

    def loss(params):
        logits = nnx.merge(graphdef, params, rest, copy=True)(jnp.asarray(x, dtype))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    nnx.update(model, jax.jit(jax.grad(loss))(params))
    return to_torch_state_dict(model)


def largest_difference(found: Gradients, expected: Gradients, names: list[str]) -> float:
    return max(relative_difference(found[name], expected[name]) for name in names)


def with_gradient(exact: Gradients) -> list[str]:
    """Returns the tensors except biases before batch norm, whose gradients are rounding errors."""
    largest = max(np.abs(g).max() for g in exact.values())
    return [name for name, g in exact.items() if np.abs(g).max() > 1e-9 * largest]


def measure(name: str, size: int, batch: int) -> list[float]:
    model = reference_model(name, num_classes=10)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    model.train()
    x = np.random.default_rng(0).standard_normal((batch, size, size, 3), np.float32)
    labels = np.arange(batch) % 10
    exact = torch_gradients(model, x, labels, torch.float64)
    theirs = torch_gradients(model, x, labels, torch.float32)
    ours = our_gradients(model, name, x, labels, jnp.float32)
    with jax.enable_x64(True):
        ours_exact = our_gradients(model, name, x, labels, jnp.float64)
    pairs = ((ours_exact, exact), (ours, exact), (theirs, exact), (ours, theirs))
    names = with_gradient(exact)
    return [largest_difference(*pair, names) for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=FAMILIES)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    print(
        "| model | ours64 - theirs64 | ours32 - theirs64 "
        "| theirs32 - theirs64 | ours32 - theirs32 |"
    )
    print("|---" * 5 + "|")
    for name in args.models:
        cells = [f"{d:.1e}" for d in measure(name, args.size, args.batch)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
