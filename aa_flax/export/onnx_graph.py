"""The graph of an ONNX file: its nodes, and the affine maps that are folded into weights."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

AFFINE = "Affine"  # x * scale + shift along an axis: a placeholder that `simplified` replaces
_COMPARED = 1024  # constants of so many entries are compared by value, larger ones by identity


class Unsupported(Exception):
    """Something that an operation of a program needs and this package cannot write as ONNX."""


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
    _names: dict[Any, str] = field(default_factory=dict)

    def add(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Appends a node, unless there is the same one, and returns the name of its result."""
        key = (operator, *map(_key, inputs), repr(attributes))
        if key not in self._names:
            self._names[key] = f"{operator.lower()}_{len(self.nodes)}"
            self.nodes.append(Node(operator, list(inputs), self._names[key], attributes))
        return self._names[key]

    def equals(self, other: "Graph") -> bool:
        """Checks whether another graph has the same nodes, constants included."""
        return len(self.nodes) == len(other.nodes) and all(
            (a.operator, a.output, a.attributes) == (b.operator, b.output, b.attributes)
            and len(a.inputs) == len(b.inputs)
            and all(map(_same, a.inputs, b.inputs))
            for a, b in zip(self.nodes, other.nodes, strict=True)
        )


def _key(value: str | np.ndarray) -> Any:
    if isinstance(value, str):
        return value
    if value.size > _COMPARED:
        return id(value)  # the node that has it keeps it alive
    return value.dtype.str, value.shape, value.tobytes()


def _same(a: str | np.ndarray, b: str | np.ndarray) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        exact = np.issubdtype(a.dtype, np.inexact)
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=exact)
    return isinstance(a, str) and isinstance(b, str) and a == b


def simplified(graph: Graph, results: list[str]) -> tuple[Graph, list[str]]:
    """Folds affine maps into the weights before them and drops what no result needs.

    Returns:
        The graph, and the names that the results have in it.
    """
    needed = _needed(graph, results)
    # A node may be merged only if nothing else reads the node before it.
    reads = Counter(name for node in needed for name in node.inputs if isinstance(name, str))
    reads.update(results)
    made: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    kept = Graph()
    for node in needed:
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
    return kept, [renamed.get(name, name) for name in results]


def _needed(graph: Graph, results: list[str]) -> list[Node]:
    read, needed = set(results), []
    for node in reversed(graph.nodes):
        if node.output in read:
            needed.append(node)
            read.update(x for x in node.inputs if isinstance(x, str))
    return needed[::-1]


def _is_merged(before: Node, node: Node) -> bool:
    """Merges a node into the one before it; returns whether that was possible."""
    if node.operator == AFFINE and node.attributes["axis"] in (None, 1):
        return before.operator in ("Conv", "Gemm") and _is_folded(before, *node.inputs[1:])
    bound = node.inputs[1] if node.operator == "Min" else None
    if before.operator == "Relu" and isinstance(bound, np.ndarray) and bound.size == 1:
        before.operator = "Clip"
        before.inputs += [np.zeros((), bound.dtype), bound.reshape(())]
        return True
    return False


def _is_folded(node: Node, scale: Any, shift: Any) -> bool:
    """Folds `x * scale + shift` into constant weights `(O, I, ...)`, or `(I, O)`, and the bias."""
    source, weights, *bias = node.inputs
    if not isinstance(weights, np.ndarray) or weights.dtype != np.float32:
        return False
    is_conv = node.operator == "Conv"
    outputs = weights.shape[0 if is_conv else 1]
    scale, shift = (np.broadcast_to(values, (outputs,)) for values in (scale, shift))
    weights = weights * (scale.reshape(-1, *[1] * (weights.ndim - 1)) if is_conv else scale)
    bias = scale * (bias[0] if bias else 0) + shift
    node.inputs = [source, weights.astype(np.float32), bias.astype(np.float32)]
    return True


def _in_onnx(node: Node) -> list[Node]:
    """Writes an affine map of channels first as a batch norm, others as a product and a sum."""
    if node.operator != AFFINE:
        return [node]
    (source, *pair), shape = node.inputs, node.attributes["shape"]
    axis, rank = node.attributes["axis"], len(shape)
    scale, shift = (np.asarray(values, np.float32) for values in pair)
    if axis == 1 and rank == 4:
        scale, shift = (np.broadcast_to(x, (shape[1],)).copy() for x in (scale, shift))
        inputs = [source, scale, shift, np.zeros_like(scale), np.ones_like(scale)]
        return [Node("BatchNormalization", inputs, node.output, {"epsilon": 0.0})]
    if axis is not None:  # a vector, with ones after it to be along that axis
        scale, shift = (
            x.reshape(-1, *[1] * (rank - 1 - axis)) if x.size > 1 else x for x in (scale, shift)
        )
    if np.all(scale == 1):
        return [Node("Add", [source, shift], node.output, {})]
    if np.all(shift == 0):
        return [Node("Mul", [source, scale], node.output, {})]
    product = Node("Mul", [source, scale], f"{node.output}_scaled", {})
    return [product, Node("Add", [product.output, shift], node.output, {})]
