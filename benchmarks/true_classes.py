"""Batch statistics for true weights whose batch norms are folded, used by `true_weights.py`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, UInt8

from aa_flax import recalibrate_batch_norm
from aa_flax.data.pixels import normalise
from aa_flax.nn.layers import BatchNorm


class _Unfolding(BatchNorm):
    """A batch norm that adopts the batch's statistics, and keeps its function by scale and bias."""

    def __call__(self, x: Array) -> Array:
        a = self.scale[...] * lax.rsqrt(self.var[...] + self.epsilon)
        y = (x - self.mean[...]) * a + self.bias[...]
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
        self.bias[...] += (mean - self.mean[...]) * a
        self.scale[...] = a * jnp.sqrt(var + self.epsilon)
        self.mean[...], self.var[...] = mean, var
        return y


def unfolded(model: nnx.Module, images: UInt8[np.ndarray, "N H W 3"]) -> nnx.Module:
    """Gives a model the batch statistics of images without changing its function in evaluation.

    A file whose batch norms are folded into the convolutions has means of 0 and variances of 1,
    which are no image's; re-estimated statistics alone would change the model in any case.
    """
    copy = nnx.clone(model)
    for _, layer in nnx.iter_modules(copy):
        if isinstance(layer, BatchNorm):
            layer.__class__ = _Unfolding
    graphdef, state = nnx.split(copy)

    @jax.jit
    def with_statistics(state, images):
        copied = nnx.merge(graphdef, state)
        copied(normalise(images))
        return nnx.state(copied)

    nnx.update(model, with_statistics(state, images))
    return model


def recalibrated(model: nnx.Module, batches: Sequence[UInt8[np.ndarray, "N H W 3"]]) -> nnx.Module:
    """Returns a copy of the model with re-estimated batch statistics."""
    return recalibrate_batch_norm(nnx.clone(model), map(jax.jit(normalise), batches))
