"""The sites that `antialias` finds in models of other packages: docs/works_with.md.

    python -m benchmarks.works_with [--output docs/measured/works_with.txt]

Prints a row for each model: its sites, their treatment, and the additional operations. Models have
their usual sizes and are traced, not computed.
"""

import argparse
import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp

from aa_flax import antialias
from aa_flax.transform.sites import Report
from benchmarks import reference  # noqa: F401  (it imports torchvision, which JaxNN does, too)

Call = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its abstract arguments


def images(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def keras(name: str) -> Call:
    import keras

    model = getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
    trained, others = (
        [v.value for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    def f(trained, others, images):
        return model.stateless_call(trained, others, images, training=False)[0]

    return f, (trained, others, images(1, 224, 224, 3))


def linen(name: str) -> Call:
    import jax_resnet

    model, x = getattr(jax_resnet, name)(n_classes=1000), images(1, 224, 224, 3)
    return model.apply, (jax.eval_shape(model.init, jax.random.key(0), x), x)


def nnx(name: str) -> Call:
    from flax import nnx
    from jaxnn import create_model  # pyright: ignore[reportMissingImports]

    graphdef, state = nnx.split(create_model(name))
    return lambda state, x: nnx.merge(graphdef, state)(x), (state, images(1, 224, 224, 3))


def haiku(name: str) -> Call:
    import haiku as hk

    def forward(x):
        return getattr(hk.nets, name)(1000)(x, is_training=hk.running_init())

    model, x = hk.without_apply_rng(hk.transform_with_state(forward)), images(1, 224, 224, 3)
    return model.apply, (*jax.eval_shape(model.init, jax.random.key(0), x), x)


def equinox(module: str, name: str) -> Call:
    from importlib import import_module

    import equinox as eqx

    make = getattr(import_module(f"equimo.models.{module}"), name)
    model = eqx.filter_eval_shape(make, num_classes=1000, key=jax.random.key(0))
    arrays, rest = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def f(arrays, images):
        call = eqx.combine(arrays, rest)
        return jax.vmap(lambda x: call(x, key=jax.random.key(0), inference=True))(images)

    return f, (arrays, images(1, 3, 224, 224))


MODELS: dict[str, Callable[[], Call]] = {
    "Keras, MobileNetV2": lambda: keras("MobileNetV2"),
    "Keras, ResNet50V2": lambda: keras("ResNet50V2"),
    "Keras, ConvNeXtTiny": lambda: keras("ConvNeXtTiny"),
    "jax-resnet (Linen), ResNet18": lambda: linen("ResNet18"),
    "JaxNN (NNX), resnet18": lambda: nnx("resnet18"),
    "JaxNN (NNX), resnetblur50": lambda: nnx("resnetblur50"),
    "Haiku, ResNet50": lambda: haiku("ResNet50"),
    "Equimo (Equinox), mobilenetv3_small": lambda: equinox("mobilenet", "mobilenetv3_small"),
    "Equimo (Equinox), convnext_t": lambda: equinox("convnext", "convnext_t"),
}


def row(name: str, report: Report) -> str:
    done = Counter(row.done for row in report.antialiased)
    cells = [f"{what}: {n}" for what, n in done.items()]
    alone = f"{len(report.left_alone)}"
    extra = f"{report.extra_flops / 1e6:+.0f}"
    return f"| {name} | {len(report)} | {'; '.join(cells)} | {alone} | {extra} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    lines = [
        "| model | sites | antialiased | left alone | extra MFLOP an image |",
        "|---|---|---|---|---|",
    ]
    for name, make in MODELS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            f, arguments = make()
            lines.append(row(name, antialias.report(f, *arguments)))
    table = "\n".join(lines)
    print(table)
    if output:
        output.write_text(table + "\n")


if __name__ == "__main__":
    main()
