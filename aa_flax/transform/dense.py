"""Convolutions and window operations with another stride than the program's, in the fastest form.

The program was traced with this package's definitions; here its convolutions and max pools get the
forms of `aa_flax.ops` again where they have one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from aa_flax import ops
from aa_flax.ops.padding import given_padding
from aa_flax.transform.values import Spread, Value

if TYPE_CHECKING:
    from aa_flax.transform.interpreter import Interpreter

_NHWC = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))


def convolve(
    run: "Interpreter", eqn: Any, x: Array, kernel: Array, stride: int | None = None
) -> Array:
    """The convolution of an equation, with that stride on every axis or its own."""
    params = eqn.params
    strides = params["window_strides"] if stride is None else (stride,) * (x.ndim - 2)
    form = (params["dimension_numbers"], params["batch_group_count"], params["out_sharding"])
    result_type = params["preferred_element_type"]
    is_open = not all(isinstance(n, int) for pair in params["padding"] for n in pair)
    if form != (_NHWC, 1, None) or result_type not in (None, x.dtype) or is_open:
        return run.bind(eqn, [x, kernel], window_strides=strides)[0]
    with given_padding():
        return ops.conv_general_dilated(
            x,
            kernel,
            strides,
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            feature_group_count=params["feature_group_count"],
            precision=params["precision"],
        )


def convolved_shape(eqn: Any, x: Array, kernel: Array) -> tuple[int, ...]:
    """The shape of its result with stride 1."""
    params = {**eqn.params, "window_strides": (1,) * (x.ndim - 2)}
    return jax.eval_shape(lambda x, k: eqn.primitive.bind(x, k, **params), x, kernel).shape


def window(
    run: "Interpreter",
    eqn: Any,
    x: Array,
    others: Sequence[Array],
    strides: Sequence[int] | None = None,
) -> list[Array]:
    """The window operation of an equation, with those strides or its own."""
    strides = tuple(eqn.params["window_strides"] if strides is None else strides)
    if eqn.primitive.name == "reduce_window_max" and _is_square(eqn.params, strides):
        low_high = [(low, high, 0) for low, high in eqn.params["padding"]]
        padded = lax.pad(x, _lowest(x.dtype), low_high)
        with given_padding():
            return [ops.max_pool(padded, eqn.params["window_dimensions"][1], stride=strides[1])]
    return run.bind(eqn, [x, *others], window_strides=strides)


def _is_square(params: dict[str, Any], strides: Sequence[int]) -> bool:
    """Whether `ops.max_pool` has this window: channels last, one size for all other axes."""
    dilations = (*params["base_dilation"], *params["window_dilation"])
    sizes = params["window_dimensions"]
    inside = {(sizes[i], strides[i]) for i in range(1, len(sizes) - 1)}
    ends = {sizes[0], sizes[-1], strides[0], strides[-1]}
    return len(sizes) >= 3 and set(dilations) == ends == {1} and len(inside) == 1


def window_maximum(x: Array, windows: dict[int, int]) -> Array:
    """The dense maximum over windows, by axis."""
    sizes = [windows.get(i, 1) for i in range(x.ndim)]
    return lax.reduce_window(x, _lowest(x.dtype), lax.max, sizes, (1,) * x.ndim, "VALID")


def _lowest(dtype: Any) -> np.ndarray:
    least = -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
    return np.array(least, dtype)


def is_uniform(value: Value) -> bool:
    """Whether an operand is one number repeated."""
    return isinstance(value, Spread) and value.value.size == 1
