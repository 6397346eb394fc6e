"""Models as functions of their state, and counts of their subsampling operations."""

from collections import Counter
from typing import Any

import jax
from flax import nnx
from jax.extend.core import Literal

from aa_flax import ops


def strided_operations(f, *arguments) -> Counter[str]:
    """Counts operations with a stride by name, in a function's program and in nested ones.

    Sums over windows of a constant, which count the pixels of each window, are excluded.
    """
    with ops.definitions():
        return _strided(jax.make_jaxpr(f)(*arguments).jaxpr)


def _strided(jaxpr: Any) -> Counter[str]:
    count, constants = Counter(), set(jaxpr.constvars)
    for eqn in jaxpr.eqns:
        if all(isinstance(v, Literal) or v in constants for v in eqn.invars):
            constants.update(eqn.outvars)
            continue
        strides = eqn.params.get("window_strides", eqn.params.get("strides")) or (1,)
        if max(strides) > 1:
            count[eqn.primitive.name] += 1
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_program):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                count += _strided(inner)
    return count


def _program(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


class functional:
    """Returns the features of a model as a function of its state and images, and the state."""

    def __init__(self, model: nnx.Module, *, train: bool = False):
        model.train() if train else model.eval()
        self.graphdef, self.state, self.others = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)

    def __call__(self, state, images):
        model = nnx.merge(self.graphdef, state, self.others)
        return model.forward_features(images), nnx.state(model, (nnx.Param, nnx.BatchStat))
