"""The values of a JAX program while it is written to an ONNX graph.

An array may have its axes in another order in the graph than in JAX: the result of a convolution is
channels first there, whatever its layout in JAX. So a transposition in JAX costs no node; one is
written where an operator needs another order than an array has.

JAX pads by reflection with slices, reversals and concatenations, computes a mean as a sum and a
quotient, and normalizes by a difference, a product and a sum. ONNX has one operator for each. So
these are kept as values of their own (`View`, `Reshaped`, `Affine`, ...) until another operation
reads them, and then written as the fewest operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aa_flax.transform.jaxpr import Rules

# A rule maps the graph, the `Spec` of the result (or a tuple of several), the primitive's
# parameters, and the values that it reads to the result.
rule = Rules()

Shape = tuple[int, ...]  # in JAX's order
COUNT = "count"  # an array in the graph: the size of the batch, of shape (1,)


class Open(int):
    """The size of an axis that is a multiple of the number of examples, in the traced program."""

    times: int

    def __new__(cls, size: int, times: int) -> "Open":
        """Returns a size that is so many times the number of examples."""
        self = super().__new__(cls, size)
        self.times = times
        return self

    def __str__(self) -> str:
        """Returns the size as `jax.export` does."""
        return "batch" if self.times == 1 else f"{self.times}*batch"


def sizes(shape: Sequence[Any]) -> list[int | str]:
    """Returns a shape with names for sizes that depend on the batch."""
    return [str(n) if isinstance(n, Open) or not isinstance(n, int) else n for n in shape]


@dataclass(frozen=True)
class Spec:
    """Shape and type of a result, open sizes marked."""

    shape: Shape
    dtype: np.dtype


@dataclass(frozen=True, eq=False)
class Tensor:
    """An array of the graph, by its name, or a constant as it is in the graph."""

    name: Any
    shape: Shape
    dtype: Any = np.float32
    order: tuple[int, ...] = ()  # JAX's axes in the order of the graph; by default as they are

    @property
    def stored(self) -> tuple[int, ...]:
        """JAX's axes in the order of the graph."""
        return self.order or tuple(range(len(self.shape)))

    def where(self, axes: Sequence[int]) -> list[int]:
        """Returns the positions in the graph of JAX's axes."""
        return [self.stored.index(axis) for axis in axes]

    def transposed(self, permutation: Sequence[int]) -> "Tensor":
        """Returns the same array of the graph with its axes in another order in JAX."""
        order = tuple(permutation.index(axis) for axis in self.stored)
        return replace(self, shape=tuple(self.shape[i] for i in permutation), order=order)


@dataclass(frozen=True, eq=False)
class Affine:
    """`base * scale + shift`, one number for each entry of an axis, or one for all (None)."""

    base: Tensor
    scale: np.ndarray
    shift: np.ndarray
    axis: int | None

    @property
    def shape(self) -> Shape:
        return self.base.shape


@dataclass(frozen=True, eq=False)
class View:
    """The positions of `base` that are read along each axis; None: all of them, in order."""

    base: Tensor
    positions: tuple[np.ndarray | None, ...]

    @property
    def shape(self) -> Shape:
        pairs = zip(self.base.shape, self.positions, strict=True)
        return tuple(size if index is None else len(index) for size, index in pairs)

    def read(self, axis: int) -> np.ndarray:
        """Returns the positions along an axis."""
        index = self.positions[axis]
        return np.arange(self.base.shape[axis]) if index is None else index

    def with_positions(self, axis: int, index: np.ndarray) -> "View":
        """Returns the view that reads these positions along an axis."""
        others = self.positions
        return View(self.base, (*others[:axis], index, *others[axis + 1 :]))


@dataclass(frozen=True, eq=False)
class Reshaped:
    """A value whose axes are split into several, as pools by reshape do."""

    source: "Value"
    shape: Shape


@dataclass(frozen=True, eq=False)
class Expanded:
    """An array repeated along new axes and along those where it has one entry.

    `at` has the axis of the result for each axis of `source`.
    """

    source: Tensor | Affine | View
    at: tuple[int, ...]
    shape: Shape

    @property
    def small(self) -> Shape:
        """The shape without any repetition."""
        sizes = dict(zip(self.at, self.source.shape, strict=True))
        return tuple(sizes.get(axis, 1) for axis in range(len(self.shape)))


Value = Tensor | Affine | View | Reshaped | Expanded | np.ndarray
