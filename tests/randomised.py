"""Models with random variables, so that missing batch norms are noticed."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)


def randomised(model: Model) -> Model:
    """Draws every variable of a model, which may be abstract, and puts it in evaluation mode.

    Models with the same variables get the same values. An abstract model (`nnx.eval_shape`) costs
    nothing to build, while initialization layer by layer takes seconds.
    """
    rng = np.random.default_rng(0)
    graphdef, state, others = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)

    def drawn(path, variable):
        shape, name = variable.shape, path[-2].key if hasattr(path[-1], "name") else path[-1].key
        spread = 0.1 if len(shape) == 1 else (2 / np.prod(shape[:-1])) ** 0.5
        values = rng.normal(0, spread, shape)
        if name in ("scale", "var"):
            values = 1 + np.abs(values)
        return jnp.asarray(values, variable.dtype)

    model = nnx.merge(graphdef, jax.tree_util.tree_map_with_path(drawn, state), others)
    model.eval()
    return model
