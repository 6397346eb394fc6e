"""Finds the batch norms and the biases of maps in a traced program.

A batch norm in evaluation is `(x - mean) * g(var)`, where `mean` and `var` are parameters with one
value per channel and `g` has the factor `1 / sqrt(var + epsilon)`. Frameworks differ in shapes and
in the order of factors only, and an antialiased program has the same operations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from aa_flax.transform.jaxpr import bind, called, evaluate, opened

_CASTS = ("convert_element_type", "copy")
_MOVES = (*_CASTS, "broadcast_in_dim", "reshape", "squeeze", "transpose")


@dataclass(frozen=True)
class Layer:
    """A batch norm, or the sum of a map and its bias.

    Attributes:
        parameters: numbers of the mean and the variance of a batch norm, or of the bias.
        operand: the number of the map among the operands of its equation.
        axis: the axis of the map's channels; None if there is one channel.
        epsilon: of a batch norm.
        reads: numbers of the parameters that the map depends on.
    """

    parameters: tuple[int, ...]
    operand: int
    axis: int | None
    epsilon: float
    reads: frozenset[int]

    @property
    def is_norm(self) -> bool:
        return len(self.parameters) == 2


def flat_program(f: Callable[..., Any], *arguments: Any) -> Any:
    """Traces a function to a program in which calls are inlined; loops and branches are not.

    The program has lost custom derivatives: it is for evaluation.
    """
    leaves, tree = jax.tree.flatten(arguments)
    traced = jax.make_jaxpr(lambda *leaves: jax.tree.leaves(f(*tree.unflatten(leaves))))(*leaves)
    return jax.make_jaxpr(lambda *leaves: _inlined(*opened(traced), leaves))(*leaves)


def _inlined(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    def run_equation(eqn: Any, operands: list[Any]) -> list[Any]:
        program = called(eqn)
        return bind(eqn, operands) if program is None else _inlined(*opened(program), operands)

    return evaluate(jaxpr, consts, inputs, run_equation)


def find_layers(jaxpr: Any, parameters: int) -> dict[int, Layer]:
    """Finds the layers of a flat program, by the identity of the equation that reads the map.

    Args:
        parameters: the number of its first inputs that are parameters; all others are data.
    """
    search = _Search(jaxpr.invars[:parameters], jaxpr.invars[parameters:])
    for eqn in jaxpr.eqns:
        search.visit(eqn)
    return search.layers


class _Search:
    """Follows parameters and data through the equations of a program."""

    def __init__(self, parameters: Sequence[Any], data: Sequence[Any]):
        self.layers: dict[int, Layer] = {}
        self.data = set(data)  # variables that depend on the data
        self.reads = {v: frozenset({i}) for i, v in enumerate(parameters)}
        # Parameters with one value per channel, as they are moved: the number, and the axis.
        self.vectors = {
            v: (i, _long_axis(v.aval.shape))
            for i, v in enumerate(parameters)
            if v.aval.ndim and _is_long(v.aval.shape)
        }
        # Values with a factor sqrt(var + epsilon)**power: the index of var, epsilon, and the power.
        self.powers: dict[Any, tuple[int, float, int]] = {}
        # Maps minus a vector, by which equation, and the vector.
        self.centred: dict[Any, tuple[Any, tuple[int, int | None]]] = {}

    def visit(self, eqn: Any) -> None:
        inputs = [v for v in eqn.invars if not isinstance(v, Literal)]
        reads = frozenset().union(*(self.reads.get(v, frozenset()) for v in inputs))
        self.reads.update(dict.fromkeys(eqn.outvars, reads))
        if any(v in self.data for v in inputs):
            self.data.update(eqn.outvars)
            self._visit_map(eqn, inputs)
        elif inputs:
            self._visit_parameters(eqn, inputs)

    def _visit_parameters(self, eqn: Any, inputs: list[Any]) -> None:
        name, out, first = eqn.primitive.name, eqn.outvars[0], inputs[0]
        if name in _MOVES:
            if first in self.vectors and (moved := _moved(eqn, *self.vectors[first])):
                self.vectors[out] = moved
            if first in self.powers:
                self.powers[out] = self.powers[first]
        elif name == "add" and len(inputs) == 1 and first in self.vectors:
            (other,) = (v.val for v in eqn.invars if isinstance(v, Literal))
            if np.size(other) == 1:
                self.powers[out] = self.vectors[first][0], float(other), 2
        elif name in ("sqrt", "rsqrt") and first in self.powers:
            var, epsilon, power = self.powers[first]
            if power == 2:
                self.powers[out] = var, epsilon, 1 if name == "sqrt" else -1
        elif name in ("mul", "div"):
            self.powers.update((out, factor) for factor in self._factors(eqn))

    def _factors(self, eqn: Any) -> list[tuple[int, float, int]]:
        """Returns the powers among the factors of a product or quotient."""
        signs = (1, -1 if eqn.primitive.name == "div" else 1)
        pairs = zip(eqn.invars, signs, strict=True)
        known = [(v, sign) for v, sign in pairs if not isinstance(v, Literal) and v in self.powers]
        return [(*self.powers[v][:2], self.powers[v][2] * sign) for v, sign in known]

    def _visit_map(self, eqn: Any, inputs: list[Any]) -> None:
        name, out = eqn.primitive.name, eqn.outvars[0]
        vectors = [self.vectors[v] for v in inputs if v in self.vectors]
        if name == "sub" and vectors and eqn.invars[0] in self.data:
            self.centred[out] = eqn, vectors[0]
        elif name in _CASTS and inputs[0] in self.centred:
            self.centred[out] = self.centred[inputs[0]]
        elif name == "add" and vectors and out.aval.ndim > 2:  # not of a linear layer
            self._add(eqn, *vectors[0])
        elif name in ("mul", "div"):
            centred = [self.centred[v] for v in inputs if v in self.centred]
            for (centring, (mean, axis)), (var, epsilon, power) in zip(
                centred, self._factors(eqn), strict=False
            ):
                if power == -1:
                    self._add(centring, mean, axis, var, epsilon=epsilon)

    def _add(
        self, eqn: Any, first: int, axis: int | None, *others: int, epsilon: float = 0
    ) -> None:
        operand = next(i for i, v in enumerate(eqn.invars) if v in self.data)
        reads = self.reads.get(eqn.invars[operand], frozenset())
        self.layers[id(eqn)] = Layer((first, *others), operand, axis, epsilon, reads)


def _moved(eqn: Any, number: int, axis: int | None) -> tuple[int, int | None] | None:
    """Returns the axis of a vector's values after a change of shape; None if they are mixed."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if axis is None or name in _CASTS:
        return number, axis
    if name == "broadcast_in_dim":
        return number, eqn.params["broadcast_dimensions"][axis]
    if name == "transpose":
        return number, eqn.params["permutation"].index(axis)
    return (number, _long_axis(shape)) if _is_long(shape) else None


def _is_long(shape: Sequence[int]) -> bool:
    return sum(n > 1 for n in shape) <= 1


def _long_axis(shape: Sequence[int]) -> int | None:
    return next((i for i, n in enumerate(shape) if n > 1), None)
