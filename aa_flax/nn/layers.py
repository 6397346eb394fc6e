"""Layers that the models share, equal to torch's layers of the same name, on NHWC arrays."""

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.nn.initializers import kaiming_normal_fan_out, ones, torch_uniform, zeros
from aa_flax.nn.pool_registry import PoolFactory, make_pool, subsample
from aa_flax.ops import conv_general_dilated, max_pool
from aa_flax.ops.cpu.batch_norm import along, batch_norm
from aa_flax.ops.linear import dot_general


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with torch's running statistics.

    The batch is normalised by its biased variance; `var` is the running average of the unbiased
    one, as in torch (of the biased one in Flax). `momentum` is the weight of the old average
    (torch's `1 - momentum`). Statistics are float32 whatever the compute type.
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
        if (count := prod(x.shape[:-1])) < 2:
            raise InputError(
                f"BatchNorm in training needs more than one value for each channel, got shape "
                f"{x.shape}; use a larger batch or image, or call model.eval()"
            )
        y, mean, var = batch_norm(x, scale, bias, self.epsilon)
        keep, unbiased = self.momentum, var * (count / (count - 1))
        for running, now in ((self.mean, mean), (self.var, unbiased)):
            moved = keep * running[...] + (1 - keep) * lax.stop_gradient(now)
            # Not in place: that would write to an array of NumPy that belongs to the caller.
            running.set_value(moved.astype(running.dtype))
        return y.astype(dtype)


class Folded(nnx.Module):
    """The identity, in place of a batch norm that `aa_flax.fuse` folded; for inference only."""

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        return x

    @property
    def use_running_average(self) -> bool:
        return True

    @use_running_average.setter
    def use_running_average(self, value: bool) -> None:  # model.train() sets it
        if not value:
            raise InputError(
                "a fused model cannot be trained: its batch norms are part of its convolutions; "
                "train the model that aa_flax.fuse was given"
            )


def refuse_folded(model: nnx.Module, *, to: str) -> None:
    """Raises an InputError if batch norms of the model are folded."""
    if any(isinstance(layer, Folded) for _, layer in nnx.iter_modules(model)):
        raise InputError(
            f"a fused model has other variables than the model it is named after; {to} the model "
            "that aa_flax.fuse was given"
        )


def promote_but_bias(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Promotes arrays as Flax does, but for the bias, whose gradient is summed in its own type."""
    *operands, bias = arrays
    return (*promote_dtype(tuple(operands), dtype=dtype, inexact=inexact), bias)


class Conv(nnx.Conv):
    """Flax's convolution, with a bias that is added in its own type."""

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # of the sum with the bias
            y = super().__call__(*args, **kwargs)
        return y if self.dtype is None else y.astype(self.dtype)


def promote_inputs(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Promotes the inputs of a linear layer as Flax does; `dot_general` converts the kernel."""
    x, kernel, bias = arrays
    x, _ = promote_dtype((x, kernel), dtype=dtype, inexact=inexact)
    return x, kernel, bias


class Linear(nnx.Linear):
    """Flax's linear layer, with a bias that is added in its own type."""

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # of the sum with the bias
            y = super().__call__(*args, **kwargs)
        return y if self.dtype is None else y.astype(self.dtype)


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
    rngs: nnx.Rngs,
    **options: Any,
) -> Conv:
    """Returns a `Conv` by torch's arguments: a square, `padding` pixels on every side."""
    return Conv(
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
        promote_dtype=promote_but_bias,
        rngs=rngs,
        **options,
    )


def linear(in_features: int, out_features: int, **options: Any) -> Linear:
    """Returns a `Linear` with Flax's options, by default initialised as in torch."""
    init = torch_uniform(in_features)
    options = {"kernel_init": init, "bias_init": init, **options}
    options = {"promote_dtype": promote_inputs, "dot_general": dot_general, **options}
    return Linear(in_features, out_features, **options)


@dataclass(frozen=True)
class LayerFactory:
    """Makes the layers of one model, with its compute type, its pool and its random keys."""

    rngs: nnx.Rngs
    dtype: DTypeLike | None = None
    pool_factory: PoolFactory | None = None  # None for a baseline
    conv_init: nnx.Initializer = kaiming_normal_fan_out

    def conv(self, in_features: int, out_features: int, size: int, **options: Any) -> Conv:
        options = {"kernel_init": self.conv_init, "dtype": self.dtype, **options}
        return conv2d(in_features, out_features, size, rngs=self.rngs, **options)

    def batch_norm(self, features: int, **options: Any) -> BatchNorm:
        return BatchNorm(features, rngs=self.rngs, **options)

    def linear(self, in_features: int, out_features: int, **options: Any) -> Linear:
        return linear(in_features, out_features, dtype=self.dtype, rngs=self.rngs, **options)

    def pool(self, stride: int, features: int, *, follows: bool = False) -> Any:
        """Makes the pool that applies a stride; None if the layer before it does, or for 1."""
        return make_pool(
            self.pool_factory, stride, features=features, rngs=self.rngs, follows=follows
        )


def strided_max_pool(
    pool: Any, x: Float[Array, "N H W C"], window: int, padding: int = 0
) -> Float[Array, "N h w C"]:
    """Applies a max pool of stride 2; with a pool, a dense maximum and then the pool."""
    stride = 2 if pool is None else 1
    return subsample(pool, max_pool(x, window, stride=stride, padding=padding))


def relu_after(layer: nnx.Module, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
    """Applies a layer and the nonlinearity after it."""
    return jax.nn.relu(layer(x))
