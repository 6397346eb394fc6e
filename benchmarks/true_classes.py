"""True weights whose batch norms were folded away, given statistics again; a part of
`true_weights.py`."""

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
    """Keeps its function and takes up the statistics of the batch: scale and bias follow."""

    def __call__(self, x: Array) -> Array:
        a = self.scale[...] * lax.rsqrt(self.var[...] + self.epsilon)
        y = (x - self.mean[...]) * a + self.bias[...]
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
        self.bias[...] += (mean - self.mean[...]) * a
        self.scale[...] = a * jnp.sqrt(var + self.epsilon)
        self.mean[...], self.var[...] = mean, var
        return y


def unfolded(model: nnx.Module, images: UInt8[np.ndarray, "N H W 3"]) -> nnx.Module:
    """The same function in evaluation, with batch statistics that are those of the images.

    A file whose batch norms were folded into the convolutions has means of 0 and variances of 1,
    which no images ever had; statistics estimated anew would then change the model in any case.
    """
    copy = nnx.clone(model)
    for _, layer in nnx.iter_modules(copy):
        if isinstance(layer, BatchNorm):
            layer.__class__ = _Unfolding
    graphdef, state = nnx.split(copy)

    @jax.jit
    def with_statistics(state, images):
        net = nnx.merge(graphdef, state)
        net(normalise(images))
        return nnx.state(net)

    nnx.update(model, with_statistics(state, images))
    return model


def recalibrated(model: nnx.Module, batches: Sequence[UInt8[np.ndarray, "N H W 3"]]) -> nnx.Module:
    """The model with batch statistics estimated anew, as a copy."""
    return recalibrate_batch_norm(nnx.clone(model), map(jax.jit(normalise), batches))
