"""Models as functions of their state, with statistics and affine parameters that matter."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def randomised(model: nnx.Module) -> nnx.Module:
    """Draws every variable of an abstract model; models with the same variables get the same."""
    rng = np.random.default_rng(0)
    graphdef, state, others = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)

    def drawn(path, variable):
        shape, name = variable.shape, path[-2].key if hasattr(path[-1], "name") else path[-1].key
        spread = 0.1 if len(shape) == 1 else (2 / np.prod(shape[:-1])) ** 0.5
        values = rng.normal(0, spread, shape)
        if name in ("scale", "var"):
            values = 1 + np.abs(values)
        return jnp.asarray(values, variable.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(drawn, state), others)


class functional:
    """The features of a model as a function of its state and images; also returns its state."""

    def __init__(self, model: nnx.Module, *, train: bool = False):
        model.train() if train else model.eval()
        self.graphdef, self.state, self.others = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)

    def __call__(self, state, images):
        model = nnx.merge(self.graphdef, state, self.others)
        return model.forward_features(images), nnx.state(model, (nnx.Param, nnx.BatchStat))
