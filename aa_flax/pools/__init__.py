"""Ways to subsample: BlurPool and its relatives, and the open table that nets take them from."""

from aa_flax.pools.blur import BlurPool, BlurUpsample, MaxBlurPool
from aa_flax.pools.registry import (
    decide,
    list_pools,
    make_pool,
    pool_factory,
    register_pool,
    subsample,
)

__all__ = [
    "BlurPool",
    "BlurUpsample",
    "MaxBlurPool",
    "decide",
    "list_pools",
    "make_pool",
    "pool_factory",
    "register_pool",
    "subsample",
]
