"""Pools as users write them: without weights, with weights, and one that chooses a phase."""

import jax
import jax.numpy as jnp
from flax import nnx


class Box(nnx.Module):
    """The mean of adjacent squares; each side of the image is a multiple of the stride."""

    def __init__(self, stride: int):
        self.stride = stride

    def __call__(self, x):
        batch, height, width, channels = x.shape
        s = self.stride
        x = x[:, : height // s * s, : width // s * s]
        return x.reshape(batch, height // s, s, width // s, s, channels).mean((2, 4))


def box(stride: int) -> Box:
    return Box(stride)


class WeightedBox(Box):
    """A box with a trained factor for each channel."""

    def __init__(self, stride: int, *, features: int, rngs: nnx.Rngs):
        super().__init__(stride)
        self.scale = nnx.Param(1 + 0.1 * jax.random.normal(rngs.params(), (features,)))

    def __call__(self, x):
        return super().__call__(x) * self.scale[...]


class LargestPhase(nnx.Module):
    """Keeps the phase of the stride in which the map is largest (polyphase)."""

    def __init__(self, stride: int):
        self.stride = stride

    def phases(self, x):
        s = self.stride
        return jnp.stack([x[:, i::s, j::s] for i in range(s) for j in range(s)])

    def choose(self, x):
        return jnp.square(self.phases(x)).sum((2, 3, 4)).argmax(0)

    def __call__(self, x, choice):
        return self.phases(x)[choice, jnp.arange(len(x))]
