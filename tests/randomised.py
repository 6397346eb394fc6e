"""Nets whose batch norms show where they are left out."""

from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

import aa_flax
from aa_flax.nn.layers import BatchNorm

Net = TypeVar("Net", aa_flax.Classifier, aa_flax.Backbone)


def randomised(net: Net) -> Net:
    """With statistics and affine parameters that show where they are left out."""
    draw = np.random.default_rng(0)
    for _, layer in nnx.iter_modules(net):
        if isinstance(layer, BatchNorm):
            for name, low in (("scale", 0.5), ("bias", -0.3), ("mean", -0.3), ("var", 0.5)):
                shape = layer.scale.shape
                getattr(layer, name)[...] = jnp.asarray(draw.uniform(low, 1.5, shape), jnp.float32)
    net.eval()
    return net
