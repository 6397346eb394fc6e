"""Prints the memory per image of a batch, in evaluation and in training.

    python benchmarks/batch_memory.py [--models resnet50_lpf4 ...] [--size 224] [--batch 16]

Temporary memory of the compiled programs, as XLA reports it, divided by the batch; weights and the
optimizer's state are not included. Nothing is computed, and no weights are created.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax
from reference import abstract_model

from aa_flax.data.pixels import normalise
from aa_flax.evaluation.predict import logits_of, predictor_of
from aa_flax.runtime import data_mesh
from aa_flax.training.step import make_train_step
from aa_flax.weights.train_state import TrainState, split_model

MODELS = ["resnet18_lpf4", "resnet50_lpf4", "mobilenet_v2_lpf4", "vgg16_lpf4", "densenet121_lpf4"]


def evaluation(name: str, images: jax.ShapeDtypeStruct) -> int:
    """Returns the temporary bytes of a forward pass."""
    predictor = predictor_of(abstract_model(name))
    program = jax.jit(logits_of, static_argnums=0)
    return _temporary(program, predictor.function, predictor.state, images)


def training(name: str, images: jax.ShapeDtypeStruct) -> int:
    """Returns the temporary bytes of an update by SGD with momentum."""
    model, optimizer = abstract_model(name), optax.sgd(0.1, 0.9)
    step = make_train_step(
        model,
        optimizer,
        lambda batch: normalise(batch["image"]),
        schedule=optax.constant_schedule(0.1),
        mesh=data_mesh(jax.devices()[:1]),
    )
    _, params, batch_stats, random_state = split_model(model)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    momentum = jax.eval_shape(optimizer.init, params)
    shapes: Any = (count, params, batch_stats, random_state, momentum)
    state = TrainState(*shapes)
    labels = jax.ShapeDtypeStruct(images.shape[:1], jnp.int32)
    return _temporary(step, state, {"image": images, "label": labels})


def _temporary(program: Any, *args: Any) -> int:
    return program.lower(*args).compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    images = jax.ShapeDtypeStruct((args.batch, args.size, args.size, 3), jnp.uint8)
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}, MB for an image in a batch")
    print("| model | evaluation | training |\n|---|---|---|")
    for name in args.models:
        found = (measure(name, images) / args.batch / 1e6 for measure in (evaluation, training))
        print(f"| {name} | {' | '.join(f'{megabytes:.0f}' for megabytes in found)} |", flush=True)


if __name__ == "__main__":
    main()
