"""Writes a program that JAX has traced to an ONNX graph, for batches of any size.

JAX traces sizes as numbers. So a program is traced for two batches, and both are walked side by
side: sizes that differ have to be multiples of the number of examples, and all else has to agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from aa_flax.errors import InputError

# Their rules.
from aa_flax.export import (  # noqa: F401
    onnx_arithmetic,
    onnx_layout,
    onnx_lookups,
    onnx_pointwise,
    onnx_reductions,
    onnx_windows,
)
from aa_flax.export.onnx_graph import Graph, Unsupported, simplified
from aa_flax.export.onnx_values import Expanded, Open, Spec, Tensor, Value, rule
from aa_flax.export.onnx_writing import plain
from aa_flax.transform.jaxpr import bind, called, evaluate, opened
from aa_flax.transform.sites import layer_name, line_of

_IDENTITIES = ("optimization_barrier", "name", "copy", "copy_p", "sharding_constraint")
_IDENTITIES += ("stop_gradient",)

_ADVICE = "write it differently, or export as .stablehlo"
_COUNTS = (2, 3)  # of examples, for which programs are traced


def converted(
    trace: Callable[[int], Any], inputs: Callable[[int], list[Tensor]]
) -> tuple[Graph, list[Tensor]]:
    """Returns the graph of a program and its results, with the axes of JAX.

    Args:
        trace: from a number of examples to the traced program.
        inputs: from a number of examples to its inputs in the graph.
    """
    few, more = _COUNTS
    programs = {count: trace(count) for count in _COUNTS}
    found = _converted(programs, _COUNTS, inputs(few))
    again = _converted(programs, (more, few), inputs(more))
    if not found[0].equals(again[0]):  # a number of examples has become a constant
        raise _depends("a constant, or a slice of the examples")
    return found


def _converted(
    programs: dict[int, Any], counts: tuple[int, int], inputs: list[Tensor]
) -> tuple[Graph, list[Tensor]]:
    walk = _Walk(Graph(), counts)
    values = walk.run(programs[counts[0]], programs[counts[1]], inputs)
    try:
        results = [plain(value, walk.graph) for value in values]
    except Unsupported as error:
        raise InputError(f"ONNX has no operator for an output: {error}; {_ADVICE}") from error
    # A constant result has a node, too.
    names = [
        walk.graph.add("Identity", x.name) if isinstance(x.name, np.ndarray) else x.name
        for x in results
    ]
    graph, names = simplified(walk.graph, names)
    return graph, [replace(x, name=name) for name, x in zip(names, results, strict=True)]


@dataclass(frozen=True)
class _Walk:
    graph: Graph
    counts: tuple[int, int]
    caller: str = "unknown"  # the line that calls the program

    def run(self, ours: Any, theirs: Any, inputs: Sequence[Value]) -> list[Value]:
        """Runs a program on values of the graph; `theirs` is that of the other batch."""
        (jaxpr, consts), (other, other_consts) = opened(ours), opened(theirs)
        dtypes = [v.aval.dtype for v in jaxpr.constvars]
        consts, other_consts = (
            list(map(_constant, each, dtypes)) for each in (consts, other_consts)
        )
        if len(jaxpr.eqns) != len(other.eqns) or not _are_equal(consts, other_consts):
            raise _depends("a constant, or which operations there are")
        pairs = zip(jaxpr.eqns, other.eqns, strict=True)
        partners = {id(eqn): partner for eqn, partner in pairs}
        needed = _needed(jaxpr)

        def results(eqn: Any, operands: list[Any]) -> Sequence[Any]:
            if id(eqn) not in needed:
                return [None] * len(eqn.outvars)
            try:
                return self._results(eqn, partners[id(eqn)], operands)
            except Unsupported as error:
                raise InputError(
                    f"ONNX has no operator for {eqn.primitive.name} {self._where(eqn)}: {error}; "
                    f"{_ADVICE}"
                ) from error

        return evaluate(jaxpr, consts, inputs, results)

    def _results(self, eqn: Any, partner: Any, operands: list[Any]) -> Sequence[Value]:
        name, params = eqn.primitive.name, eqn.params
        if name != partner.primitive.name or len(eqn.outvars) != len(partner.outvars):
            raise _depends(f"{name} {self._where(eqn)}")
        program = called(eqn)
        if program is None and _literals(eqn) != _literals(partner):
            raise _depends(f"{name} {self._where(eqn)}")
        pairs = zip(operands, eqn.invars, strict=True)
        operands = [x if _in_graph(x) else _constant(x, v.aval.dtype) for x, v in pairs]
        if program is not None:
            inner = replace(self, caller=self._line(eqn))
            return inner.run(program, called(partner), operands)
        if name in _IDENTITIES:
            return operands
        pairs = zip(eqn.outvars, partner.outvars, strict=True)
        specs = [self._spec(v.aval, w.aval, eqn) for v, w in pairs]
        if not any(map(_in_graph, operands)):
            return _folded(eqn, specs, operands)
        if all(0 in spec.shape for spec in specs):  # added by padding with no pixels
            return [np.zeros(spec.shape, spec.dtype) for spec in specs]
        for spec in specs:
            if np.issubdtype(spec.dtype, np.inexact) and spec.dtype != np.float32:
                raise Unsupported(f"programs that compute in {spec.dtype}, only in float32")
        out = tuple(specs) if eqn.primitive.multiple_results else specs[0]
        result = rule.apply(name, self.graph, out, params, *operands)
        if result is None:
            raise Unsupported("this package has no rule for it")
        return result if eqn.primitive.multiple_results else [result]

    def _spec(self, ours: Any, theirs: Any, eqn: Any) -> Spec:
        if len(ours.shape) != len(theirs.shape):
            raise _depends(f"{eqn.primitive.name} {self._where(eqn)}")
        pairs = zip(ours.shape, theirs.shape, strict=True)
        return Spec(tuple(self._size(*pair, eqn) for pair in pairs), ours.dtype)

    def _size(self, ours: int, theirs: int, eqn: Any) -> int:
        if ours == theirs:
            return ours
        times, rest = divmod(ours, self.counts[0])
        if rest or times * self.counts[1] != theirs:
            raise _depends(f"{eqn.primitive.name} {self._where(eqn)}")
        return Open(ours, times)

    def _line(self, eqn: Any) -> str:
        line = line_of(eqn)
        return self.caller if line == "unknown" else line

    def _where(self, eqn: Any) -> str:
        layer, line = layer_name(eqn), self._line(eqn)
        return f"at {line}" if layer in (line, "unknown") else f"of {layer} at {line}"


def _needed(jaxpr: Any) -> set[int]:
    """Returns the identities of the equations that the results of a program need."""
    read, needed = set(map(id, jaxpr.outvars)), set()
    for eqn in reversed(jaxpr.eqns):
        if any(id(v) in read for v in eqn.outvars):
            needed.add(id(eqn))
            read.update(map(id, eqn.invars))
    return needed


def _in_graph(value: Any) -> bool:
    return isinstance(value, Value) and not isinstance(value, np.ndarray)


def _constant(value: Any, dtype: Any) -> Any:
    """Returns a constant as an array of NumPy, unless it is a random key."""
    return value if jnp.issubdtype(dtype, jax.dtypes.extended) else np.asarray(value, dtype)


def _are_equal(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(
        a is b or (isinstance(a, np.ndarray) and a.shape == b.shape and _are_same(a, b))
        for a, b in zip(ours, theirs, strict=True)
    )


def _are_same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")


def _folded(eqn: Any, specs: list[Spec], operands: list[Any]) -> list[Any]:
    """Computes what depends on constants alone."""
    if eqn.primitive.name == "broadcast_in_dim":
        # Repeated without a copy, so that `compact` finds the constant that was repeated.
        (spec,), (x,), at = specs, operands, tuple(eqn.params["broadcast_dimensions"])
        if any(isinstance(n, Open) for n in spec.shape):
            return [Expanded(Tensor(x, x.shape, x.dtype), at, spec.shape)]
        kept = [x.shape[at.index(axis)] if axis in at else 1 for axis in range(len(spec.shape))]
        return [np.broadcast_to(x.reshape(kept), spec.shape)]
    pairs = zip(bind(eqn, operands), specs, strict=True)
    return [_for_any_batch(_constant(x, spec.dtype), spec) for x, spec in pairs]


def _for_any_batch(x: Any, spec: Spec) -> Any:
    """Returns a constant that is the same for each example as one for any number of them."""
    small = x
    for axis, size in enumerate(spec.shape):
        if isinstance(size, Open):
            small = small.take([0], axis)
    if small is x:
        return x
    if not _are_same(x, np.broadcast_to(small, x.shape)):
        raise Unsupported("its constant differs between examples")
    return Expanded(Tensor(small, small.shape, x.dtype), tuple(range(x.ndim)), spec.shape)


def _literals(eqn: Any) -> list[Any]:
    return [v.val for v in eqn.invars if isinstance(v, Literal)]


def _depends(what: str) -> InputError:
    return InputError(
        f"ONNX cannot be written for any number of examples, on which this depends: {what}; make "
        "it independent of x.shape[0], or export as .stablehlo"
    )
