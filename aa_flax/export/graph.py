"""The graph that an ONNX file is made of: nodes with their constants, and what makes fewer of them.

Maps `(N, H, W, C)` stand in it channels first, as ONNX's convolutions have them; all other arrays
stand as they are in JAX.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CHANNELS_FIRST = (0, 3, 1, 2)  # where the axes of an array of four stand
AFFINE = "Affine"  # x * scale + shift for each channel: no operator of ONNX; `simplified` takes it


@dataclass
class Node:
    """An operator, what it reads (arrays by name, or constants), and the name of its result."""

    operator: str
    inputs: list[str | np.ndarray]
    output: str
    attributes: dict[str, Any]


@dataclass
class Graph:
    """Nodes in the order they are computed in."""

    nodes: list[Node] = field(default_factory=list)

    def add(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Appends a node.

        Returns:
            The name of its result.
        """
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(Node(operator, list(inputs), output, attributes))
        return output

    def equals(self, other: "Graph") -> bool:
        """Whether another graph computes the same in the same way, constants included."""
        return len(self.nodes) == len(other.nodes) and all(
            (a.operator, a.output, a.attributes) == (b.operator, b.output, b.attributes)
            and len(a.inputs) == len(b.inputs)
            and all(map(_same, a.inputs, b.inputs))
            for a, b in zip(self.nodes, other.nodes, strict=True)
        )


def _same(a: str | np.ndarray, b: str | np.ndarray) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return isinstance(a, str) and isinstance(b, str) and a == b
    return a.dtype == b.dtype and np.array_equal(a, b)


def simplified(graph: Graph, result: str) -> Graph:
    """The graph with its affine maps in the weights before them, or as one batch norm.

    Args:
        result: the name of what the graph gives, which keeps it.
    """
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
    """Whether the node before can do what this one does, and now does it."""
    if node.operator == AFFINE and before.operator in ("Conv", "Gemm"):
        _fold(before, *node.inputs[1:])
        return True
    bound = node.inputs[1] if node.operator == "Min" else None
    if before.operator == "Relu" and isinstance(bound, np.ndarray) and bound.size == 1:
        before.operator = "Clip"
        before.inputs += [np.zeros((), bound.dtype), bound.reshape(())]
        return True
    return False


def _fold(node: Node, scale: Any, shift: Any) -> None:
    """Takes `x * scale + shift` into the weights `(O, I, kh, kw)`, or `(I, O)`, and the bias."""
    source, weights, *bias = node.inputs
    assert isinstance(weights, np.ndarray)
    is_conv = node.operator == "Conv"
    outputs = weights.shape[0 if is_conv else 1]
    scale, shift = (np.broadcast_to(values, (outputs,)) for values in (scale, shift))
    weights = weights * (scale[:, None, None, None] if is_conv else scale)
    bias = scale * (bias[0] if bias else 0) + shift
    node.inputs = [source, weights.astype(np.float32), bias.astype(np.float32)]


def _in_onnx(node: Node) -> list[Node]:
    """An affine map that stays, as a batch norm, or as a product and a sum where there is none."""
    if node.operator != AFFINE:
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
