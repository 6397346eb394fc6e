"""Matrix products of linear layers: `lax.dot_general`, in float32 on CPU."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from aa_flax.ops import dispatch
from aa_flax.ops.dispatch import Multilinear, Static


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    """Computes `lax.dot_general` in the type of `x`.

    On CPU, a product in half precision with a kernel in float32 is computed in float32. The rows
    are as few as the images of a batch, so time goes to reading the kernel, and converting it to
    half precision reads and writes more.
    """
    definition = Static(_in_type_of_x, dimension_numbers=dimension_numbers, **options)
    if x.dtype.itemsize > 2 or kernel.dtype != jnp.float32:
        return definition(x, kernel)
    wide = Static(_in_float32, dimension_numbers=dimension_numbers, **options)
    return dispatch.apply(Multilinear(definition), {"cpu": Multilinear(wide)}, x, kernel)


def _in_type_of_x(x: Array, kernel: Array, **options: Any) -> Array:
    return lax.dot_general(x, kernel.astype(x.dtype), **options)


def _in_float32(x: Array, kernel: Array, **options: Any) -> Array:
    return lax.dot_general(x.astype(jnp.float32), kernel, **options).astype(x.dtype)
