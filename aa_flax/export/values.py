"""What a value of a JAX program is while it is written as ONNX: an array of the graph, or one that
follows from such an array in a way that ONNX has a better word for than JAX.

JAX pads by reflection in slices, reversals and concatenations, takes a mean as a sum and a
quotient, and normalises by a difference, a product and a sum. These are kept as what they come to
until something else reads them.
"""

from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import numpy as np

from aa_flax.errors import InputError
from aa_flax.export.graph import AFFINE, CHANNELS_FIRST, Graph

Shape = tuple[int, ...]  # in JAX's order


def refuse(what: str) -> InputError:
    """The error of a net that computes something ONNX is not written for here."""
    return InputError(f"ONNX is not written for {what}; export the net as .stablehlo")


@dataclass(frozen=True)
class Tensor:
    """An array of the graph, by its name."""

    name: str
    shape: Shape
    dtype: Any = np.float32


@dataclass(frozen=True)
class Affine:
    """`base * scale + shift`, one number for each entry of the last axis, or one for all."""

    base: Tensor
    scale: np.ndarray
    shift: np.ndarray

    @property
    def shape(self) -> Shape:
        return self.base.shape


@dataclass(frozen=True)
class View:
    """For each axis which positions of `base` are read; None: the axis as it is."""

    base: Tensor
    positions: tuple[np.ndarray | None, ...]

    @property
    def shape(self) -> Shape:
        pairs = zip(self.base.shape, self.positions, strict=True)
        return tuple(size if index is None else len(index) for size, index in pairs)

    def read(self, axis: int) -> np.ndarray:
        """The positions of an axis."""
        index = self.positions[axis]
        return np.arange(self.base.shape[axis]) if index is None else index


@dataclass(frozen=True)
class Windows:
    """A map `(N, H, W, C)` as adjoining windows: `(N, H / kh, kh, W / kw, kw, C)`."""

    base: Tensor
    window: tuple[int, int]
    shape: Shape


@dataclass(frozen=True)
class Repeated:
    """A view with each position of an axis repeated along a new axis behind it."""

    view: View
    axis: int
    times: int

    @property
    def shape(self) -> Shape:
        shape = self.view.shape
        return (*shape[: self.axis + 1], self.times, *shape[self.axis + 1 :])

    def merged(self) -> View:
        """Both axes as one."""
        positions = list(self.view.positions)
        positions[self.axis] = np.repeat(self.view.read(self.axis), self.times)
        return View(self.view.base, tuple(positions))


Value = Tensor | Affine | View | Windows | Repeated | np.ndarray


def scaled(value: Value, scale: Any = 1.0, shift: Any = 0.0, *, graph: Graph) -> Affine:
    """`value * scale + shift`, in float64 until it is written."""
    if isinstance(value, Affine):
        return replace(value, scale=value.scale * scale, shift=value.shift * scale + shift)
    return Affine(
        written(value, graph), np.asarray(scale, np.float64), np.asarray(shift, np.float64)
    )


def viewed(value: Value, graph: Graph) -> View:
    """The value as a view, of itself if it is none."""
    if isinstance(value, View):
        return value
    base = written(value, graph)
    return View(base, (None,) * len(base.shape))


def axis_of(rank: int, axis: int) -> int:
    """Where an axis of JAX's stands in the graph."""
    return CHANNELS_FIRST.index(axis) if rank == 4 else axis


def as_stored(x: Tensor, found: list[int], wanted: list[int], graph: Graph) -> Tensor:
    """The array with its axes in another order, told by what they are."""
    if found == wanted:
        return x
    order = [found.index(axis) for axis in wanted]
    return Tensor(graph.add("Transpose", x.name, perm=order), x.shape)


def stored(constant: np.ndarray) -> np.ndarray:
    """A constant as it stands in the graph; what is repeated along an axis stands there once."""
    constant = compact(constant)
    return constant.transpose(CHANNELS_FIRST) if constant.ndim == 4 else constant


def compact(constant: np.ndarray) -> np.ndarray:
    """The constant with one entry along each axis that `np.broadcast_to` has stretched."""
    return np.asarray(constant[tuple(slice(None if s or n < 2 else 1) for n, s in _axes(constant))])


def _axes(constant: np.ndarray) -> zip:
    return zip(constant.shape, constant.strides, strict=True)


@singledispatch
def written(value: Any, graph: Graph) -> Tensor:
    """The value as an array of the graph."""
    raise refuse("arrays that are cut or repeated along an axis")


@written.register
def _(value: Tensor, graph: Graph) -> Tensor:
    return value


@written.register
def _(value: Affine, graph: Graph) -> Tensor:
    base = value.base
    if np.all(value.scale == 1) and np.all(value.shift == 0):
        return base
    channels = base.shape[-1] if len(base.shape) == 4 else None
    name = graph.add(AFFINE, base.name, value.scale, value.shift, channels=channels)
    return replace(base, name=name)


@written.register
def _(value: View, graph: Graph) -> Tensor:
    rank, name = len(value.shape), value.base.name
    indexed = {
        axis_of(rank, axis): (value.base.shape[axis], index)
        for axis, index in enumerate(value.positions)
        if index is not None and not np.array_equal(index, np.arange(value.base.shape[axis]))
    }
    axes = np.array(sorted(indexed), np.int64)
    if not indexed:
        pass
    elif (padding := _padding(indexed)) is not None:
        mode, widths = padding
        # All axes: onnxruntime's optimiser goes wrong over a Pad of some.
        pads = [widths.get(axis, (0, 0))[side] for side in (0, 1) for axis in range(rank)]
        name = graph.add("Pad", name, np.array(pads, np.int64), mode=mode)
    elif (steps := _steps(indexed)) is not None:
        rows = np.array([steps[axis] for axis in sorted(indexed)], np.int64).T
        name = graph.add("Slice", name, *rows[:2], axes, rows[2])
    else:
        for axis in sorted(indexed):
            name = graph.add("Gather", name, np.asarray(indexed[axis][1], np.int64), axis=int(axis))
    return Tensor(name, value.shape)


_Indexed = dict[int, tuple[int, np.ndarray]]  # by axis of the graph: its size, what is read of it


def _padding(indexed: _Indexed) -> tuple[str, dict[int, tuple[int, int]]] | None:
    """The mode and the widths of the padding that reads these positions, if one does."""
    for mode in ("reflect", "edge", "wrap"):
        widths = {axis: _widths(mode, *given) for axis, given in indexed.items()}
        if all(each is not None for each in widths.values()):
            return mode, widths  # pyright: ignore[reportReturnType]
    return None


def _widths(mode: Any, size: int, index: np.ndarray) -> tuple[int, int] | None:
    more = len(index) - size
    most = size - (mode == "reflect")  # which ONNX goes no further than
    for before in range(max(0, more - most), min(more, most) + 1):
        widths = (before, more - before)
        if np.array_equal(index, np.pad(np.arange(size), widths, mode=mode)):
            return widths
    return None


def _steps(indexed: _Indexed) -> dict[int, tuple[int, int, int]] | None:
    """For each axis where a slice begins, where it ends and its step, if slices are read."""
    steps = {}
    for axis, (_, index) in indexed.items():
        step = int(index[1] - index[0]) if len(index) > 1 else 1
        if step < 1 or np.any(np.diff(index) != step):
            return None
        steps[axis] = (int(index[0]), int(index[-1]) + 1, step)
    return steps
