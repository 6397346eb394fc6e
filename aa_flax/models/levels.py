"""Levels of a feature pyramid: which blocks end them, and their sizes, found by tracing alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from aa_flax.errors import InputError

if TYPE_CHECKING:
    from aa_flax.models.classifier import Classifier

# Sides of two square images. How much larger the larger one's maps are tells their stride, for
# every stride that divides the difference.
_SIZES = (1024, 1024 + 40320)


class FeatureLevel(NamedTuple):
    """One level of a feature pyramid.

    Attributes:
        name: of the block that ends it.
        channels: of its maps.
        reduction: how many times smaller than the images they are, on each axis.
    """

    name: str
    channels: int
    reduction: int


def feature_info(model: Classifier) -> tuple[FeatureLevel, ...]:
    """Every level of a net's feature pyramid, from the finest to the coarsest.

    Raises:
        InputError: a block whose maps do not grow with the images.
    """
    traced = {level.name: level for level in _traced_blocks(model)}
    return tuple(traced[name] for name in model.level_ends())


def last_blocks(model: Classifier) -> list[str]:
    """Names of the last block at each resolution.

    Raises:
        InputError: a block whose maps do not grow with the images.
    """
    last = {level.reduction: level.name for level in _traced_blocks(model)}
    return list(last.values())


_found: dict[nnx.GraphDef, tuple[FeatureLevel, ...]] = {}


def _traced_blocks(model: Classifier) -> tuple[FeatureLevel, ...]:
    """Every block of the trunk as if it ended a level."""
    graphdef, state = nnx.split(model)
    if graphdef not in _found:
        names = [name for name, _ in model.feature_blocks()]
        small, large = (_shapes(graphdef, state, size, model.image_channels) for size in _SIZES)
        _found[graphdef] = tuple(
            FeatureLevel(name, a.shape[-1], _reduction(model, name, a, b))
            for name, a, b in zip(names, small, large, strict=True)
        )
    return _found[graphdef]


def _shapes(graphdef, state, size: int, channels: int) -> Iterable[jax.ShapeDtypeStruct]:
    """What each block gives for a square image, in evaluation."""

    def run(state, x):
        net = nnx.merge(graphdef, state)
        net.eval()
        maps = []
        for _, block in net.feature_blocks():
            x = block(x)
            maps.append(x)
        return maps

    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(run, state, image)


def _reduction(model: Classifier, name: str, small, large) -> int:
    grown = large.shape[1] - small.shape[1] if small.ndim == 4 else 0
    if not grown:
        raise InputError(
            f"{name} of {model.name or type(model).__name__} gives {small.shape} for images of "
            f"{_SIZES[0]} pixels; a block of features has maps (N, h, w, c) that grow with them"
        )
    return round((_SIZES[1] - _SIZES[0]) / grown)
