"""Periodic images, for analysis: one context in which every layer pads circularly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_circular = jax.make_user_context(False)  # a part of what `jax.jit` looks a trace up by


@contextmanager
def circular_padding() -> Iterator[None]:
    """Within it, convolutions, max pools and BlurPools see periodic images, whatever their padding.

    For analysis: a layer of stride s then gives maps of `n / s` pixels of images of n, and commutes
    with whole shifts by s. It acts while a function is traced; a function that was jitted outside
    is traced anew.
    """
    with _circular(True):
        yield


@contextmanager
def given_padding() -> Iterator[None]:
    """Within it, layers pad as they are told: for what has continued an image by itself."""
    with _circular(False):
        yield


def is_circular() -> bool:
    """Whether `circular_padding` is in force."""
    return _circular.value


def wrapped(
    x: Float[Array, "N *spatial C"],
    extents: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "N *padded C"]:
    """The image continued periodically, as far as windows of those extents need it."""
    widths = [
        (before, max(extent - stride - before, 0))
        for extent, stride, (before, _) in zip(extents, strides, padding, strict=True)
    ]
    return jnp.pad(x, [(0, 0), *widths, (0, 0)], mode="wrap")
