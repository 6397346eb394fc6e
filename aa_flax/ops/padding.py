"""Circular padding of every layer, for analysis with periodic images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_circular = jax.make_user_context(False)  # part of the key of `jax.jit`'s cache of traces


@contextmanager
def circular_padding() -> Iterator[None]:
    """Makes convolutions, max pools and BlurPools pad circularly, whatever their padding.

    For analysis: a layer of stride s then maps n pixels to `n / s`, and commutes with shifts by
    multiples of s. It acts at trace time; a function that was jitted outside is traced again.
    """
    with _circular(True):
        yield


@contextmanager
def given_padding() -> Iterator[None]:
    """Suspends `circular_padding`, for an operation that has padded its input itself."""
    with _circular(False):
        yield


def is_circular() -> bool:
    """Checks whether `circular_padding` is in force."""
    return _circular.value


def wrapped(
    x: Float[Array, "N *spatial C"],
    extents: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "N *padded C"]:
    """Continues an image periodically, as far as windows of those extents read it."""
    widths = [
        (before, max(extent - stride - before, 0))
        for extent, stride, (before, _) in zip(extents, strides, padding, strict=True)
    ]
    return jnp.pad(x, [(0, 0), *widths, (0, 0)], mode="wrap")
