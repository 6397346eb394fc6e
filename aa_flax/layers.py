"""Modules that the nets share, computing what their torch namesakes compute, on NHWC arrays."""

from math import prod

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.initialisers import kaiming_normal_fan_out, ones, torch_uniform, zeros
from aa_flax.ops import conv_general_dilated
from aa_flax.ops.batch_norm import along, batch_norm


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with torch's running statistics.

    The batch is normalised by its biased variance; `var` runs after the unbiased one, as in torch
    (Flax runs after the biased one). Statistics are float32 whatever the compute type, and the
    variance is taken about the mean, which does not cancel at large means.

    Args:
        num_features: channels `C`.
        momentum: weight of the old running statistic (torch's `1 - momentum`).
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        scale_init: nnx.Initializer = ones,
        rngs: nnx.Rngs,
    ):
        shape = (num_features,)
        key = rngs.params()
        self.scale = nnx.Param(scale_init(key, shape, jnp.float32))
        self.bias = nnx.Param(zeros(key, shape))
        self.mean = nnx.BatchStat(zeros(key, shape))
        self.var = nnx.BatchStat(ones(key, shape))
        self.momentum = momentum
        self.epsilon = epsilon
        self.use_running_average = False

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        dtype = x.dtype
        x = x.astype(np.promote_types(x.dtype, jnp.float32))
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            factor = scale * lax.rsqrt(self.var[...] + self.epsilon)
            y = (x - along(self.mean[...], x)) * along(factor, x) + along(bias, x)
            return y.astype(dtype)
        self._refuse_a_single_value(x)
        y, mean, var = batch_norm(x, scale, bias, self.epsilon)
        self._run_after(mean, var, prod(x.shape[:-1]))
        return y.astype(dtype)

    def _refuse_a_single_value(self, x: Array) -> None:
        if prod(x.shape[:-1]) < 2:
            raise InputError(
                f"BatchNorm in training needs more than one value for each channel, got shape "
                f"{x.shape}; use a larger batch or image, or call model.eval()"
            )

    def _run_after(self, mean: Array, var: Array, count: int) -> None:
        """Moves the running statistics towards a batch's, with its unbiased variance."""
        keep, unbiased = self.momentum, var * (count / (count - 1))
        for running, now in ((self.mean, mean), (self.var, unbiased)):
            moved = keep * running[...] + (1 - keep) * lax.stop_gradient(now)
            # Replaced: an array of NumPy would be written to, which is the caller's.
            running.set_value(moved.astype(running.dtype))


class Folded(nnx.Module):
    """What `aa_flax.fuse` leaves at a batch norm's place: the identity, for inference alone."""

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        return x

    @property
    def use_running_average(self) -> bool:
        return True

    @use_running_average.setter
    def use_running_average(self, value: bool) -> None:  # model.train() sets it
        if not value:
            raise InputError(
                "a fused net cannot be trained: its batch norms are part of its convolutions; "
                "train the net that aa_flax.fuse was given"
            )


def refuse_folded(model: nnx.Module, *, to: str) -> None:
    """Raises an InputError if batch norms of the model have been folded."""
    if any(isinstance(layer, Folded) for _, layer in nnx.iter_modules(model)):
        raise InputError(
            f"a fused net has other variables than the net it is named after; {to} the net that "
            "aa_flax.fuse was given"
        )


def conv2d(
    in_features: int,
    out_features: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: nnx.Initializer = kaiming_normal_fan_out,
    bias_init: nnx.Initializer = zeros,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square 2-D convolution with torch's arguments: `padding` pixels on every side."""
    return nnx.Conv(
        in_features,
        out_features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((padding, padding), (padding, padding)),
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        rngs=rngs,
    )


def linear(
    in_features: int,
    out_features: int,
    *,
    kernel_init: nnx.Initializer | None = None,
    bias_init: nnx.Initializer | None = None,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer; its initialisation is torch's default unless given."""
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=kernel_init or torch_uniform(in_features),
        bias_init=bias_init or torch_uniform(in_features),
        dtype=dtype,
        rngs=rngs,
    )
