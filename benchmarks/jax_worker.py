"""The process of `models.py` for this project's models; see `worker.py`."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from worker import KEEPS_MEMORY, Work, device_in_words, serve, versions

from aa_flax import create_model, runtime, tune_cpu
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.measures.consistency import consistency
from aa_flax.evaluation.observe import observe
from aa_flax.evaluation.predict import predictor_of
from aa_flax.evaluation.views import ShiftedPairs
from aa_flax.models.classifier import Classifier
from aa_flax.ops import definitions, dispatch
from aa_flax.runtime import data_mesh, put_batch
from aa_flax.training.step import init_state, make_train_step

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
SHIFT_RANGE = 32  # pixels


@contextmanager
def cpu_kernels() -> Iterator[None]:
    """Traces every operation as its CPU kernel, on any platform."""
    apply = dispatch.apply

    def apply_cpu(definition, kernels, *arrays):
        return apply(kernels.get("cpu", definition), {}, *arrays)

    dispatch.apply = apply_cpu
    try:
        yield
    finally:
        dispatch.apply = apply


VARIANTS: dict[str, Callable[[], AbstractContextManager]] = {
    "default": nullcontext,
    "remat": nullcontext,
    "definitions": definitions,
    "cpu_kernels": cpu_kernels,
    "without_onednn": nullcontext,
}


def forward(model: Classifier, task: dict[str, Any]) -> Callable[[], Any]:
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    images = normalise(jnp.asarray(random_images(task["batch"], task["size"])))
    return lambda: compiled(state, images)


def training(model: Classifier, task: dict[str, Any]) -> Callable[[], Any]:
    """Returns a training step: SGD with momentum and weight decay on uint8 images."""
    mesh = data_mesh(jax.devices()[:1])
    sgd = optax.sgd(LEARNING_RATE, MOMENTUM)
    optimizer = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), sgd)
    step = make_train_step(
        model,
        optimizer,
        lambda batch: normalise(batch["image"]),
        schedule=optax.constant_schedule(LEARNING_RATE),
        mesh=mesh,
    )
    labels = np.random.default_rng(1).integers(0, 1000, task["batch"]).astype(np.int32)
    images = random_images(task["batch"], task["size"])
    batch = put_batch({"image": images, "label": labels}, mesh)
    state = [init_state(model, optimizer, mesh)]

    def update() -> Any:
        state[0], metrics = step(state[0], batch)
        return metrics

    return update


def shift(model: Classifier, task: dict[str, Any]) -> Callable[[], Any]:
    """Returns the evaluation's consistency of two batches, with one pair of crops per image."""
    size = task["batch"]
    images = random_images(2 * size, task["size"] + SHIFT_RANGE)
    batches = [
        {
            "image": images[first : first + size],
            "index": np.arange(first, first + size, dtype=np.int32),
            "label": np.zeros(size, np.int32),
            "mask": np.ones(size, bool),
        }
        for first in (0, size)
    ]
    pairs = {"shift": ShiftedPairs(task["size"], SHIFT_RANGE, passes=1)}
    mesh, predictor = data_mesh(jax.devices()[:1]), predictor_of(model)
    return lambda: consistency(observe(predictor, batches, pairs, mesh=mesh)["shift"])


MODES = {"forward": forward, "training": training, "consistency": shift}


def random_images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def prepare(task: dict[str, Any]) -> Work:
    model = create_model(task["model"], dtype=task["precision"])
    model.remat = task["variant"] == "remat"
    run = MODES[task["mode"]](model, task)
    tracing = VARIANTS[task["variant"]]

    def run_in_variant() -> Any:
        with tracing():
            return run()

    device = jax.devices()[0]

    def memory() -> int:
        return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)

    on_host = device.platform == "cpu"
    return Work(run_in_variant, jax.block_until_ready, None if on_host else memory)


def identity() -> dict[str, str]:
    device = jax.devices()[0]
    kind = "cpu" if device.platform == "cpu" else device.device_kind
    return {"versions": versions(jax), "device": device_in_words(kind)}


if __name__ == "__main__":
    if sys.argv[1:] == ["without_onednn"]:
        runtime._use_onednn = lambda: None
    if KEEPS_MEMORY in os.environ and not tune_cpu():
        sys.exit("memory can be kept with glibc only")
    serve(prepare, identity)
