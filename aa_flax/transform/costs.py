"""Floating-point operations of what replaces a place: a multiplication and an addition are two."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from aa_flax.nn.blur import BlurPool

if TYPE_CHECKING:
    from aa_flax.transform.options import Options, Sampler


def convolution(eqn: Any, output_shape: Sequence[int]) -> float:
    """FLOPs of a convolution with that output."""
    kernel = eqn.invars[1].aval.shape
    numbers = eqn.params["dimension_numbers"]
    taps = prod(kernel[i] for i in numbers.rhs_spec[2:])
    return 2.0 * prod(output_shape) * taps * kernel[numbers.rhs_spec[1]]


def sampling(
    options: "Options", sampler: "Sampler", strides: Sequence[int], output_shape: Sequence[int]
) -> float:
    """FLOPs of the pool: of a blur as it is defined, of another pool as many."""
    pool = sampler.pool
    taps = pool.filter_size if isinstance(pool, BlurPool) else options.filter_size
    sizes = (taps,) * len(strides) if isinstance(taps, int) else tuple(taps)
    return 2.0 * prod(output_shape) * prod(sizes)
