"""Pools that choose a phase of each image: adaptive (APS) and learned (LPS) polyphase sampling."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from aa_flax.errors import InputError, choice, real
from aa_flax.nn.layers import conv2d
from aa_flax.ops import blur_pool, circular_padding
from aa_flax.ops.blur import check_options, one_or_several
from aa_flax.ops.lowpass import Padding
from aa_flax.ops.polyphase import Choice, mix_phases, polyphase, take_phase, upsample_phase

Norm = Literal["l2", "l1", "linf"]
Training = Literal["gumbel", "softmax"]


class PhasePool(nnx.Module):
    """A pool that keeps a phase of each image, or a mixture, after a binomial filter."""

    stride: int | tuple[int, ...]
    filter_size: int | tuple[int, ...] = 1  # no filter
    padding: Padding = "reflect"

    def __call__(self, x: Float[Array, "N *spatial C"], choice: Choice) -> Float[Array, "N *out C"]:
        is_mixture = jnp.issubdtype(choice.dtype, jnp.floating)
        return (mix_phases if is_mixture else take_phase)(self._blurred(x), choice, self.stride)

    def upsample(
        self, y: Float[Array, "N *out C"], choice: Choice, size: int | Sequence[int] | None = None
    ) -> Float[Array, "N *spatial C"]:
        """Puts values back at their phase: see `aa_flax.pools.upsample_phase`."""
        return upsample_phase(y, choice, self.stride, self.filter_size, self.padding, size=size)

    def _blurred(self, x: Array) -> Array:
        return x if self.filter_size == 1 else blur_pool(x, self.filter_size, 1, self.padding)


class AdaptivePool(PhasePool):
    """Keeps the phase of the largest norm of each image (adaptive polyphase sampling, APS).

    The pools `aps_l2`, `aps_l1` and `aps_linf`, and `aps_lpf<k>` with BlurPool's filter of k taps
    before (and `l2`). If a periodic image is shifted by any number of pixels, the values that are
    kept are the same, shifted on their grid. So a model with such pools, circular padding and no
    other strides is exactly shift-equivariant, even untrained, where its strides divide the size of
    its maps.

    Args:
        norm: `l2` is the sum of squares, `l1` the sum of magnitudes, `linf` the largest magnitude,
            over positions and channels. Ties of `linf`, common after a max pool, are broken by the
            sum of squares, and further ties by the first phase.
        filter_size, padding: of the filter before, as in `blur_pool`; 1: no filter.

    Raises:
        InputError: an invalid option.

    Source: Chaman and Dokmanic, Truly shift-invariant convolutional neural networks, CVPR 2021:
    Sec. 3, and 4.2 (with a filter, and shortcuts that follow the main branch).
    """

    def __init__(
        self,
        stride: int | Sequence[int] = 2,
        norm: Norm = "l2",
        filter_size: int | Sequence[int] = 1,
        padding: Padding = "reflect",
    ):
        self.filter_size = one_or_several("filter_size", filter_size)
        _, self.stride, self.padding, _ = check_options(1, stride, padding, 0)
        self.norm: Norm = choice("norm", norm, Norm)

    def choose(self, x: Float[Array, "N *spatial C"]) -> Int[Array, " N"]:
        """Returns the number of the phase of the largest norm for each image."""
        phases = jnp.abs(polyphase(self._blurred(x), self.stride))
        phases = phases.astype(np.promote_types(x.dtype, jnp.float32))
        axes = tuple(range(2, phases.ndim))
        if self.norm == "l1":
            return phases.sum(axes).argmax(1)
        energy = jnp.square(phases).sum(axes)
        if self.norm == "linf":  # a max pool gives several phases the same largest value
            largest = phases.max(axes)
            energy = jnp.where(largest == largest.max(1, keepdims=True), energy, -1)
        return energy.argmax(1)


class PhaseScore(nnx.Module):
    """The score of a map, also if it is rolled: 3x3 convolution - ReLU - 3x3 convolution - mean."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        width = max(features // 8, 8)
        self.conv1 = conv2d(features, width, 3, padding=1, use_bias=True, rngs=rngs)
        self.conv2 = conv2d(width, 1, 3, padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, " N"]:
        with circular_padding():
            return self.conv2(jax.nn.relu(self.conv1(x))).mean((1, 2, 3))


class LearnedPhasePool(PhasePool):
    """Keeps the phase that a small trained network scores highest (learned polyphase, LPS).

    The pools `lps` and `lps_softmax`. In evaluation the highest score wins, and models are
    shift-equivariant as with `AdaptivePool`. In training, `gumbel` draws one phase by scores with
    Gumbel noise, and the softmax replaces the drawn phase in the gradient; `softmax` mixes the
    phases by the softmax of their scores.

    Args:
        temperature: divisor of the scores in training, above 0.
        features: channels of the maps.
        follows: True if another pool's choice is always given, as in a shortcut: then it has no
            network.
        rngs: random keys of the network's weights, and of the noise (stream `dropout`).

    Raises:
        InputError: an invalid option, or a choice requested from a pool that follows another.

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
        choice("training", training, Training)
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
        """Returns the phase of each image in evaluation, and weights of the phases in training.

        Raises:
            InputError: the pool follows the choice of another one.
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
