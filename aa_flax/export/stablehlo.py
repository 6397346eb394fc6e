"""A model as a serialized program of StableHLO, for a process that has JAX and not this package."""

from pathlib import Path

import jax
import numpy as np
from jax import export as jax_export

from aa_flax.export.program import Program, bound_to_one_size
from aa_flax.models.shapes import exportable_bound
from aa_flax.ops import definitions

PACKAGES, RUNTIME = ("flatbuffers",), "jax"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(program: Program, path: Path) -> None:
    """Writes `jax.export`'s serialized program, for a batch of any size and three platforms."""
    sizes, bounds = f"n, {program.size}, {program.size}", []
    if program.open_size:
        smallest = smallest_open_size(program)
        sizes, bounds = "n, h, w", [f"h >= {smallest}", f"w >= {smallest}"]
    images = program.images(*jax_export.symbolic_shape(sizes, constraints=bounds))
    run = jax.jit(lambda images: program.finished(program.logits(images)))
    with definitions():
        exported = jax_export.export(run, platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """Runs the file, read back."""
    return np.asarray(jax_export.deserialize(bytearray(path.read_bytes())).call(images))


def smallest_open_size(program: Program) -> int:
    """Returns the smallest side of images that a program of open sizes takes."""
    bound = exportable_bound(program.model)
    if bound is None:
        raise bound_to_one_size(program.name)
    return bound
