"""Ways to subsample: BlurPool and its relatives, and the open table that nets take them from."""

from aa_flax.pools.adaptive import AdaptivePool
from aa_flax.pools.average import AveragePool
from aa_flax.pools.blur import BlurPool, BlurUpsample, MaxBlurPool
from aa_flax.pools.gaussian import GaussianPool
from aa_flax.pools.ideal import IdealPool
from aa_flax.pools.kaiser import KaiserPool
from aa_flax.pools.learned import LearnedPool
from aa_flax.pools.learned_polyphase import LearnedPhasePool
from aa_flax.pools.registry import (
    decide,
    list_pools,
    make_pool,
    pool_factory,
    register_pool,
    subsample,
)
from aa_flax.pools.upsample import upsample_phase

__all__ = [
    "AdaptivePool",
    "AveragePool",
    "BlurPool",
    "BlurUpsample",
    "GaussianPool",
    "IdealPool",
    "KaiserPool",
    "LearnedPhasePool",
    "LearnedPool",
    "MaxBlurPool",
    "decide",
    "list_pools",
    "make_pool",
    "pool_factory",
    "register_pool",
    "subsample",
    "upsample_phase",
]
