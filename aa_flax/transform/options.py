"""Options of `antialias`, and the pools they select."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import jax
from flax import nnx
from jax.errors import InconclusiveDimensionOperation
from jaxtyping import Array

from aa_flax.errors import InputError, boolean, first_line, integer
from aa_flax.nn.blur import BlurPool
from aa_flax.nn.pool_registry import PoolFactory, decide, make_pool, pool_factory, subsample
from aa_flax.ops.blur import Padding, check_options
from aa_flax.transform.sites import Site


class Refused(Exception):
    """A site stays as it is, for the reason given."""


@dataclass
class Phase:
    """The decision that pools share, if they decide anything (adaptive polyphase sampling)."""

    choice: Any = None
    sites: list[Any] = field(default_factory=list)


@dataclass
class Sampler:
    """A pool at a site, and the decision it shares with the pools of its block.

    Args:
        taps: of its filter, over all axes; of a pool that does not say, those of a blur.
    """

    pool: Any
    taps: int
    phase: Phase = field(default_factory=Phase)

    def __call__(self, x: Array) -> Array:
        if self.phase.choice is None:
            self.phase.choice = decide(self.pool, x)
        return subsample(self.pool, x, self.phase.choice)

    @property
    def decides(self) -> bool:
        return hasattr(self.pool, "choose")

    def flops(self, output_shape: Sequence[int]) -> float:
        """Returns its FLOPs by definition; a multiplication and an addition are two."""
        return 2.0 * prod(output_shape) * self.taps


@dataclass(frozen=True)
class Options:
    """The options of `antialias`."""

    filter_size: int
    padding: Padding
    pool: str | PoolFactory | None
    where: Callable[[Site], bool] | None
    min_channels: int
    before: bool

    def __post_init__(self):
        check_options(self.filter_size, 2, self.padding, 0)
        integer("filter_size", self.filter_size, least=1)
        integer("min_channels", self.min_channels, least=0)
        boolean("before", self.before)
        if self.where is not None and not callable(self.where):
            raise InputError(
                f"where must be a function from a Site to True or False, got {self.where!r}"
            )
        if self.before and self.pool is not None:
            raise InputError(
                "before=True blurs without subsampling, which only BlurPool does: leave out pool"
            )
        if self.pool is not None and self.padding != "reflect":
            raise InputError(
                "padding is an option of BlurPool: leave it out, or give a factory that sets it"
            )
        self._factory  # noqa: B018 (refuses an unknown pool now)

    @cached_property
    def _factory(self) -> PoolFactory | None:
        return None if self.pool is None else pool_factory(None, self.pool)

    def sampler(
        self, strides: Sequence[int], dense: tuple[int, ...], sampled: tuple[int, ...], dtype: Any
    ) -> Sampler:
        """Returns the pool for maps of shape `dense` and results `sampled`, `(N, *spatial, C)`.

        Raises:
            Refused: the pool does not do that.
            InputError: the pool has weights.
        """
        try:
            pool = self._pool(tuple(strides), dense[-1])
            maps = jax.ShapeDtypeStruct(dense, dtype)
            found = jax.eval_shape(lambda x: subsample(pool, x), maps).shape
        except (_HasWeights, InconclusiveDimensionOperation):  # open sizes: `antialias` explains
            raise
        except Exception as error:
            raise Refused(f"the pool refuses it: {first_line(error)}") from error
        if tuple(found) != tuple(sampled):
            raise Refused(f"the pool makes {tuple(found)} of {dense}, not {tuple(sampled)}")
        taps = pool.filter_size if isinstance(pool, BlurPool) else self.filter_size
        return Sampler(pool, taps ** len(strides) if isinstance(taps, int) else prod(taps))

    def _pool(self, strides: tuple[int, ...], features: int) -> Any:
        if self._factory is None:
            return BlurPool(self.filter_size, strides, self.padding)
        if len(set(strides)) > 1:
            raise ValueError(f"it takes one stride for all axes, not {strides}")
        pool = make_pool(self._factory, strides[0], features=features, rngs=nnx.Rngs(0))
        if isinstance(pool, nnx.Module) and jax.tree.leaves(nnx.state(pool, nnx.Param)):
            raise _HasWeights(
                f"the pool {self.pool!r} has weights, and antialias adds no parameters: use one "
                "without, or build the model with it"
            )
        return pool


class _HasWeights(InputError):
    """A pool with weights, an error; where a pool refuses a site, the site is left alone."""
