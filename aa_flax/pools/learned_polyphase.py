"""Learnable polyphase sampling: a small network scores the phases."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from aa_flax.errors import InputError, real
from aa_flax.layers import conv2d
from aa_flax.ops import circular_padding
from aa_flax.ops.blur import check_options
from aa_flax.ops.polyphase import mix_phases, polyphase, take_phase
from aa_flax.pools.registry import register_pool
from aa_flax.pools.upsample import upsample_phase

Training = Literal["gumbel", "softmax"]
Choice = Int[Array, " N"] | Float[Array, "N phases"]


class PhaseScore(nnx.Module):
    """3x3 convolution - ReLU - 3x3 convolution - mean: one number for a map, however it is rolled.

    Convolutions are circular, so that the score of a phase does not change as the image moves.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        width = max(features // 8, 8)
        self.conv1 = conv2d(features, width, 3, padding=1, use_bias=True, rngs=rngs)
        self.conv2 = conv2d(width, 1, 3, padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, " N"]:
        with circular_padding():
            return self.conv2(jax.nn.relu(self.conv1(x))).mean((1, 2, 3))


class LearnedPhasePool(nnx.Module):
    """Keeps, of each image, the phase that a small trained network scores highest (LPS).

    The pools `lps` and `lps_softmax`. In evaluation the highest score wins, and what is said of
    moved images under `AdaptivePool` holds. In training the choice is the softmax of the scores:
    with `gumbel`, of scores with Gumbel noise, and one phase is drawn (the softmax only takes its
    place in the gradient); with `softmax`, phases are mixed by it. A map `(N, H, W, C)` gets
    `ceil(n / stride)` values on each axis.

    Args:
        stride: subsampling factor, 1 or more; one number, or one for each axis.
        training: `gumbel` or `softmax`.
        temperature: what scores are divided by in training, above 0.
        features: channels of the maps.
        follows: whether another pool's choice is always given, as in a shortcut: then it has no
            network of its own.
        rngs: random keys of the network's weights, and of the noise (stream `dropout`).

    Raises:
        InputError: an option that is none of these, or a choice that is asked of one that follows.

    Source: Rojas-Gomez et al., Learnable Polyphase Sampling for Shift Invariant and Equivariant
    Convolutional Networks, NeurIPS 2022, Sec. 4; the gradient of a drawn phase: Jang et al.,
    Categorical Reparameterization with Gumbel-Softmax, ICLR 2017, Sec. 2.2.
    """

    def __init__(
        self,
        stride: int | Sequence[int] = 2,
        *,
        training: Training = "gumbel",
        temperature: float = 1.0,
        features: int,
        follows: bool = False,
        rngs: nnx.Rngs,
    ):
        if training not in get_args(Training):
            known = ", ".join(get_args(Training))
            raise InputError(f"training must be one of {known}; got {training!r}")
        self.stride = check_options(1, stride, "circular", 0).stride
        self.temperature = real("temperature", temperature)
        if self.temperature <= 0:
            raise InputError(f"temperature must be above 0, got {temperature}")
        self.score = None if follows else PhaseScore(features, rngs=rngs)
        noisy = training == "gumbel" and not follows
        self.noise = rngs["dropout"].fork() if noisy else None
        self.training: Training = training
        self.deterministic = False  # `train()` and `eval()` set it

    def choose(self, x: Float[Array, "N H W C"]) -> Choice:
        """In evaluation the numbers of phases, in training their weights.

        Raises:
            InputError: it was made to follow the choice of another pool.
        """
        if self.score is None:
            raise InputError("this pool follows the choice of another, and was given none")
        phases = polyphase(x.astype(np.promote_types(x.dtype, jnp.float32)), self.stride)
        scores = self.score(phases.reshape(-1, *phases.shape[2:])).reshape(phases.shape[:2])
        if self.deterministic:
            return scores.argmax(1)
        if self.noise is not None:
            scores = scores + jax.random.gumbel(self.noise(), scores.shape, scores.dtype)
        soft = jax.nn.softmax(scores / self.temperature)
        if self.training == "softmax":
            return soft
        drawn = jax.nn.one_hot(scores.argmax(1), scores.shape[1], dtype=scores.dtype)
        return drawn + soft - jax.lax.stop_gradient(soft)

    def __call__(self, x: Float[Array, "N H W C"], choice: Choice) -> Float[Array, "N h w C"]:
        if jnp.issubdtype(choice.dtype, jnp.floating):
            return mix_phases(x, choice, self.stride)
        return take_phase(x, choice, self.stride)

    def upsample(
        self,
        y: Float[Array, "N h w C"],
        choice: Choice,
        size: int | Sequence[int] | None = None,
    ) -> Float[Array, "N H W C"]:
        """Puts values back at the phase they are from: see `aa_flax.pools.upsample_phase`."""
        return upsample_phase(y, choice, self.stride, size=size)


register_pool("lps", LearnedPhasePool)
register_pool("lps_softmax", partial(LearnedPhasePool, training="softmax"))
