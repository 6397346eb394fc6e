"""Runs models compiled as a whole, which is many times as fast as operation by operation."""

import jax
from flax import nnx


def run(model, x):
    """Returns a model's outputs, traced in the context of the call."""
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)
