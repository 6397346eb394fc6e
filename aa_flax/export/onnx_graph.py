"""The graph of an ONNX file, and what the values of a JAX program are while they are written to it.

Maps `(N, H, W, C)` are channels first in the graph, as ONNX's convolutions need them; all other
arrays are as in JAX.

JAX pads by reflection with slices, reversals and concatenations, computes a mean as a sum and a
quotient, and normalizes by a difference, a product and a sum. ONNX has one operator for each. So
these are kept as values of their own (`View`, `Windows`, `Affine`, ...) until another operation
reads them, and then written as the fewest operators.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aa_flax.errors import InputError

Shape = tuple[int, ...]  # in JAX's order
CHANNELS_FIRST = (0, 3, 1, 2)  # JAX's axes of an array of four, in the graph's order
_AFFINE = "Affine"  # x * scale + shift per channel: a placeholder that `simplified` replaces


def refuse(what: str) -> InputError:
    """Returns the error for a model that computes something this package cannot write as ONNX."""
    return InputError(f"ONNX export does not support {what}; export the model as .stablehlo")


@dataclass
class Node:
    """An operator, its inputs (arrays by name, or constants), and the name of its result."""

    operator: str
    inputs: list[str | np.ndarray]
    output: str
    attributes: dict[str, Any]


@dataclass
class Graph:
    """Nodes in the order of their computation."""

    nodes: list[Node] = field(default_factory=list)

    def add(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Appends a node and returns the name of its result."""
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(Node(operator, list(inputs), output, attributes))
        return output

    def equals(self, other: "Graph") -> bool:
        """Checks whether another graph has the same nodes, constants included."""
        return len(self.nodes) == len(other.nodes) and all(
            (a.operator, a.output, a.attributes) == (b.operator, b.output, b.attributes)
            and len(a.inputs) == len(b.inputs)
            and all(map(_same, a.inputs, b.inputs))
            for a, b in zip(self.nodes, other.nodes, strict=True)
        )


def _same(a: str | np.ndarray, b: str | np.ndarray) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return isinstance(a, str) and isinstance(b, str) and a == b


def simplified(graph: Graph, result: str) -> Graph:
    """Returns the graph of that result, affine maps folded into the weights before them."""
    # A node may be merged only if nothing else reads the node before it.
    reads = Counter(name for node in graph.nodes for name in node.inputs if isinstance(name, str))
    reads[result] += 1
    made: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    kept = Graph()
    for node in graph.nodes:
        names = [renamed.get(x, x) if isinstance(x, str) else x for x in node.inputs]
        node = Node(node.operator, names, node.output, node.attributes)
        before = made.get(names[0]) if isinstance(names[0], str) else None
        if before and reads[before.output] == 1 and _is_merged(before, node):
            renamed[node.output] = before.output
            reads[before.output] = reads[node.output]
            continue
        for part in _in_onnx(node):
            made[part.output] = part
            kept.nodes.append(part)
    if result in renamed:
        made[renamed[result]].output = result
    return kept


def _is_merged(before: Node, node: Node) -> bool:
    """Merges a node into the one before it; returns whether that was possible."""
    if node.operator == _AFFINE and before.operator in ("Conv", "Gemm"):
        _fold(before, *node.inputs[1:])
        return True
    bound = node.inputs[1] if node.operator == "Min" else None
    if before.operator == "Relu" and isinstance(bound, np.ndarray) and bound.size == 1:
        before.operator = "Clip"
        before.inputs += [np.zeros((), bound.dtype), bound.reshape(())]
        return True
    return False


def _fold(node: Node, scale: Any, shift: Any) -> None:
    """Folds `x * scale + shift` into the weights `(O, I, kh, kw)`, or `(I, O)`, and the bias."""
    source, weights, *bias = node.inputs
    assert isinstance(weights, np.ndarray)
    is_conv = node.operator == "Conv"
    outputs = weights.shape[0 if is_conv else 1]
    scale, shift = (np.broadcast_to(values, (outputs,)) for values in (scale, shift))
    weights = weights * (scale[:, None, None, None] if is_conv else scale)
    bias = scale * (bias[0] if bias else 0) + shift
    node.inputs = [source, weights.astype(np.float32), bias.astype(np.float32)]


def _in_onnx(node: Node) -> list[Node]:
    """Writes an affine map as a batch norm, or without channels as a product and a sum."""
    if node.operator != _AFFINE:
        return [node]
    (source, *pair), channels = node.inputs, node.attributes["channels"]
    scale, shift = (np.asarray(values, np.float32) for values in pair)
    if channels is None:
        product = Node("Mul", [source, scale], f"{node.output}_scaled", {})
        return [product, Node("Add", [product.output, shift], node.output, {})]
    scale, shift = (np.broadcast_to(values, (channels,)).copy() for values in (scale, shift))
    mean, var = np.zeros_like(scale), np.ones_like(scale)
    inputs = [source, scale, shift, mean, var]
    return [Node("BatchNormalization", inputs, node.output, {"epsilon": 0.0})]


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


@dataclass(frozen=True)
class Windows:
    """A map `(N, H, W, C)` as adjoining windows: `(N, H / kh, kh, W / kw, kw, C)`."""

    base: Tensor
    window: tuple[int, int]
    shape: Shape


@dataclass(frozen=True)
class Repeated:
    """A view with each position of an axis repeated along a new axis after it."""

    view: View
    axis: int
    times: int

    @property
    def shape(self) -> Shape:
        shape = self.view.shape
        return (*shape[: self.axis + 1], self.times, *shape[self.axis + 1 :])

    def merged(self) -> View:
        """Returns both axes as one."""
        repeated = np.repeat(self.view.read(self.axis), self.times)
        return self.view.with_positions(self.axis, repeated)


Value = Tensor | Affine | View | Windows | Repeated | np.ndarray


def scaled(value: Value, scale: Any = 1.0, shift: Any = 0.0, *, graph: Graph) -> Affine:
    """Returns `value * scale + shift`, in float64 until it is written."""
    if isinstance(value, Affine):
        return replace(value, scale=value.scale * scale, shift=value.shift * scale + shift)
    return Affine(
        written(value, graph), np.asarray(scale, np.float64), np.asarray(shift, np.float64)
    )


def viewed(value: Value, graph: Graph) -> View:
    """Returns a value as a view, of itself if it is not one."""
    if isinstance(value, View):
        return value
    base = written(value, graph)
    return View(base, (None,) * len(base.shape))


def axis_of(rank: int, axis: int) -> int:
    """Returns the position in the graph of an axis of JAX."""
    return CHANNELS_FIRST.index(axis) if rank == 4 else axis


def as_stored(x: Tensor, found: list[int], wanted: list[int], graph: Graph) -> Tensor:
    """Transposes an array in the graph from the axes that were `found` to those `wanted`."""
    if found == wanted:
        return x
    order = [found.index(axis) for axis in wanted]
    return Tensor(graph.add("Transpose", x.name, perm=order), x.shape)


def stored(constant: np.ndarray) -> np.ndarray:
    """Returns a constant as it is in the graph, without repetition along axes."""
    constant = compact(constant)
    return constant.transpose(CHANNELS_FIRST) if constant.ndim == 4 else constant


def compact(constant: np.ndarray) -> np.ndarray:
    """Returns a constant with one entry along each axis that `np.broadcast_to` has stretched."""
    axes = zip(constant.shape, constant.strides, strict=True)
    return np.asarray(constant[tuple(slice(None if s or n < 2 else 1) for n, s in axes)])


def written(value: Value, graph: Graph) -> Tensor:
    """Returns a value as an array of the graph, to which it adds nodes where needed."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, View):
        return _written_view(value, graph)
    if not isinstance(value, Affine):
        raise refuse("arrays that are cut or repeated along an axis")
    base = value.base
    if np.all(value.scale == 1) and np.all(value.shift == 0):
        return base
    channels = base.shape[-1] if len(base.shape) == 4 else None
    name = graph.add(_AFFINE, base.name, value.scale, value.shift, channels=channels)
    return replace(base, name=name)


def _written_view(value: View, graph: Graph) -> Tensor:
    rank, name = len(value.shape), value.base.name
    indexed = {
        axis_of(rank, axis): (value.base.shape[axis], index)
        for axis, index in enumerate(value.positions)
        if index is not None and not np.array_equal(index, np.arange(value.base.shape[axis]))
    }
    if not indexed:
        return value.base
    if (padding := _padding(indexed)) is not None:
        mode, widths = padding
        # All axes are padded, since onnxruntime's optimizer miscompiles a Pad of some.
        pads = [widths.get(axis, (0, 0))[side] for side in (0, 1) for axis in range(rank)]
        name = graph.add("Pad", name, np.array(pads, np.int64), mode=mode)
    elif (steps := _steps(indexed)) is not None:
        axes = np.array(sorted(indexed), np.int64)
        rows = np.array([steps[axis] for axis in axes], np.int64).T
        name = graph.add("Slice", name, *rows[:2], axes, rows[2])
    else:
        for axis in sorted(indexed):
            name = graph.add("Gather", name, np.asarray(indexed[axis][1], np.int64), axis=int(axis))
    return Tensor(name, value.shape)


_Indexed = dict[int, tuple[int, np.ndarray]]  # by axis of the graph: its size, positions read


def _padding(indexed: _Indexed) -> tuple[str, dict[int, tuple[int, int]]] | None:
    """Returns the mode and the widths of the padding that reads these positions, or None."""
    for mode in ("reflect", "edge", "wrap"):
        widths = {axis: _widths(mode, *given) for axis, given in indexed.items()}
        if all(each is not None for each in widths.values()):
            return mode, widths  # pyright: ignore[reportReturnType]
    return None


def _widths(mode: Any, size: int, index: np.ndarray) -> tuple[int, int] | None:
    more = len(index) - size
    most = size - (mode == "reflect")  # of ONNX
    for before in range(max(0, more - most), min(more, most) + 1):
        widths = (before, more - before)
        if np.array_equal(index, np.pad(np.arange(size), widths, mode=mode)):
            return widths
    return None


def _steps(indexed: _Indexed) -> dict[int, tuple[int, int, int]] | None:
    """Returns start, stop and step of the slice along each axis, or None if one is no slice."""
    steps = {}
    for axis, (_, index) in indexed.items():
        step = int(index[1] - index[0]) if len(index) > 1 else 1
        if step < 1 or np.any(np.diff(index) != step):
            return None
        steps[axis] = (int(index[0]), int(index[-1]) + 1, step)
    return steps
