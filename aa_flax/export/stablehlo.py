"""A net as a serialised program of StableHLO, for a process that has JAX and not this package."""

from pathlib import Path

import jax
import numpy as np
from jax import export as jax_export

from aa_flax.errors import InputError
from aa_flax.export.program import Program
from aa_flax.models.shapes import exportable_bound
from aa_flax.ops import definitions

PLATFORMS = ("cpu", "cuda", "tpu")


def smallest_open_size(program: Program) -> int:
    """From which side on the program takes images of every size.

    Raises:
        InputError: it does not.
    """
    bound = exportable_bound(program.model)
    if bound is None:
        raise bound_to_one_size(program.name)
    return bound


def bound_to_one_size(name: str) -> InputError:
    """The error of a net whose program depends on the size of its images."""
    return InputError(
        f"{name} cannot be exported for images of every size: what it computes depends on their "
        "height and width in numbers (AlexNet and VGG pool into a fixed number of bins, some pools "
        "look up an axis as a whole); leave dynamic size out, and export a file for each size"
    )


def write_stablehlo(program: Program, path: Path) -> None:
    """Writes `jax.export`'s serialised program, for a batch of any size and three platforms.

    Raises:
        InputError: sizes that were to be open and cannot be.
    """
    sizes, bounds = f"n, {program.size}, {program.size}", []
    if program.open_size:
        smallest = smallest_open_size(program)
        sizes, bounds = "n, h, w", [f"h >= {smallest}", f"w >= {smallest}"]
    images = program.images(*jax_export.symbolic_shape(sizes, constraints=bounds))

    def run(images):
        return program.finished(program.logits(images))

    with definitions():
        exported = jax_export.export(jax.jit(run), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def run_stablehlo(path: Path, images: np.ndarray) -> np.ndarray:
    """What the file gives, read back."""
    return np.asarray(jax_export.deserialize(bytearray(path.read_bytes())).call(images))
