"""Where a net's layers stand in its torch file: what the nets' `torch_layers` are made of.

An antialiased net has a place for every pool. BlurPool fills it with its fixed filter; another pool
without variables leaves it empty, so all layers have the names they have in the `_lpf<k>` net.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from flax import nnx

from aa_flax.errors import InputError
from aa_flax.nn.layers import BatchNorm
from aa_flax.nn.pool_registry import binomial_size


class Filter(NamedTuple):
    """A BlurPool in a torch file: its fixed filter, repeated for each channel."""

    filter_size: int
    channels: int


class Flattened(NamedTuple):
    """A linear layer on a flattened feature map: channels come first in torch, last in Flax."""

    linear: nnx.Linear
    height: int
    width: int


Layer = BatchNorm | nnx.Conv | nnx.Linear | Filter | Flattened
Layers = Iterator[tuple[str, Layer]]


def sequential(prefix: str, layers: Sequence[Layer | None]) -> Layers:
    """torch's Sequential: layers are named by their place; None: one that holds nothing."""
    for i, layer in enumerate(layers):
        if layer is not None:
            yield f"{prefix}.{i}", layer


# What stands in a Sequential and holds nothing.
RELU = MAX_POOL = DROPOUT = None


def pool_filter(pool: nnx.Module, channels: int) -> Filter | None:
    """What a torch file holds at the place of a pool; None: nothing.

    Raises:
        InputError: the pool has variables, which no torch file has a place for.
    """
    size = binomial_size(pool)
    if size is not None:
        return Filter(size, channels)
    if isinstance(pool, nnx.Module) and jax.tree.leaves(nnx.state(pool)):
        raise InputError(
            f"a net whose pool {type(pool).__name__} has variables has no torch layout: torch's "
            "nets have no place for them; save it by aa_flax.save_weights"
        )
    return None


def pool_layers(name: str, pool: nnx.Module | None, channels: int) -> Layers:
    """What a torch file holds at the place of a pool, if there is one: see `pool_filter`."""
    held = None if pool is None else pool_filter(pool, channels)
    if held is not None:
        yield name, held
