"""A net compiled as a whole: operation by operation it takes many times as long."""

import jax
from flax import nnx


def run(model, x):
    """What the net gives; in the context of the call, whatever was compiled before."""
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)
