"""Pools: layers that subsample, and the registry from which models make them by name.

All have the contract that `aa_flax.nn.pool_registry` describes; `register_pool` adds your own.
"""

from collections.abc import Sequence
from functools import partial

from aa_flax.nn.blur import BlurPool, BlurUpsample, MaxBlurPool
from aa_flax.nn.filters import AveragePool, GaussianPool, IdealPool, KaiserPool, LearnedPool
from aa_flax.nn.polyphase import AdaptivePool, LearnedPhasePool
from aa_flax.nn.pool_registry import (
    decide,
    list_pools,
    make_pool,
    pool_factory,
    register_pool,
    subsample,
)
from aa_flax.ops.polyphase import upsample_phase

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


def _adaptive_after_blur(filter_size: int, stride: int | Sequence[int]) -> AdaptivePool:
    return AdaptivePool(stride, filter_size=filter_size)


register_pool("binomial<k>", BlurPool, widths=range(1, 8))
register_pool("aps_l2", partial(AdaptivePool, norm="l2"))
register_pool("aps_l1", partial(AdaptivePool, norm="l1"))
register_pool("aps_linf", partial(AdaptivePool, norm="linf"))
register_pool("aps_lpf<k>", _adaptive_after_blur, widths=(2, 3, 5))
register_pool("average", AveragePool)
register_pool("gaussian<k>", GaussianPool, widths=(3, 5, 7))
register_pool("ideal", IdealPool)
register_pool("kaiser<k>", KaiserPool, widths=(5, 7, 9))
register_pool("learned<k>", LearnedPool, widths=(3, 5))
register_pool("lps", LearnedPhasePool)
register_pool("lps_softmax", partial(LearnedPhasePool, training="softmax"))
