"""The layers of a model's torch file: the parts that models' `torch_layers` are made of.

An antialiased model has a name for every pool. A BlurPool has its fixed filter there; another pool
without variables has nothing, so all layers have the names they have in the `_lpf<k>` model.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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

# Layers of a Sequential without variables.
RELU = MAX_POOL = DROPOUT = None


def sequential(prefix: str, layers: Sequence[Layer | None]) -> Layers:
    """Names layers as torch's Sequential, by their index; None: one without variables."""
    for i, layer in enumerate(layers):
        if layer is not None:
            yield f"{prefix}.{i}", layer


def pool_entry(pool: Any, channels: int) -> list[Layer | None]:
    """Returns the entry of a torch Sequential for a pool; none without a pool."""
    if pool is None:
        return []
    if (size := binomial_size(pool)) is not None:
        return [Filter(size, channels)]
    if isinstance(pool, nnx.Module) and jax.tree.leaves(nnx.state(pool)):
        raise InputError(
            f"a model whose pool {type(pool).__name__} has variables has no torch layout, since "
            "torch's models have no such variables; save it by aa_flax.save_weights"
        )
    return [None]


def pool_layers(name: str, pool: Any, channels: int) -> Layers:
    """Yields what a torch file has for a pool, if anything."""
    return ((name, layer) for layer in pool_entry(pool, channels) if layer is not None)
