"""What `antialias` was told: checked once, and turned into pools where they are needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from flax import nnx
from jax.errors import InconclusiveDimensionOperation
from jaxtyping import Array

from aa_flax.errors import InputError, boolean, first_line, integer
from aa_flax.nn.blur import BlurPool
from aa_flax.nn.pool_registry import (
    PoolFactory,
    decide,
    make_pool,
    pool_factory,
    subsample,
)
from aa_flax.ops.blur import Padding, check_options
from aa_flax.transform.places import Place
from aa_flax.transform.values import Phase


class Refused(Exception):
    """A place stays as it is, for the reason given."""


@dataclass(frozen=True)
class Options:
    """The options of `antialias`."""

    filter_size: int
    padding: Padding
    pool: str | PoolFactory | None
    where: Callable[[Place], bool] | None
    min_channels: int
    before: bool

    def __post_init__(self):
        check_options(self.filter_size, 2, self.padding, 0)
        integer("filter_size", self.filter_size, least=1)
        integer("min_channels", self.min_channels, least=0)
        boolean("before", self.before)
        if self.where is not None and not callable(self.where):
            raise InputError(
                f"where must be a function from a place to True or False, got {self.where!r}"
            )
        if self.before and self.pool is not None:
            raise InputError(
                "before=True blurs without subsampling, which is BlurPool's alone: leave out pool"
            )
        if self.pool is not None and self.padding != "reflect":
            raise InputError("padding is BlurPool's: leave it out, or give a factory that sets it")
        self.factory  # noqa: B018 (an unknown pool is told now)

    @cached_property
    def factory(self) -> PoolFactory | None:
        return None if self.pool is None else pool_factory(None, self.pool)

    def blur(self, strides: Sequence[int]) -> BlurPool:
        return BlurPool(self.filter_size, tuple(strides), self.padding)

    def sampler(
        self, strides: Sequence[int], dense: tuple[int, ...], sampled: tuple[int, ...], dtype: Any
    ) -> "Sampler":
        """What subsamples maps of shape `dense` to `sampled`, both `(N, *spatial, C)`.

        Raises:
            Refused: the pool does not.
            InputError: the pool has weights.
        """
        try:
            pool = self._pool(tuple(strides), dense[-1])
            found = jax.eval_shape(
                lambda x: subsample(pool, x), jax.ShapeDtypeStruct(dense, dtype)
            ).shape
        except _HasWeights as error:
            raise InputError(str(error)) from None
        except InconclusiveDimensionOperation:  # an open size: the caller's to settle
            raise
        except Exception as error:
            raise Refused(f"the pool refuses it: {first_line(error)}") from error
        if tuple(found) != tuple(sampled):
            raise Refused(f"the pool makes {tuple(found)} of {dense}, not {tuple(sampled)}")
        return Sampler(pool, Phase())

    def _pool(self, strides: tuple[int, ...], features: int) -> Any:
        if self.factory is None:
            return self.blur(strides)
        if len(set(strides)) > 1:
            raise ValueError(f"it takes one stride for all axes, not {strides}")
        pool = make_pool(self.factory, strides[0], features=features, rngs=nnx.Rngs(0))
        if isinstance(pool, nnx.Module) and jax.tree.leaves(nnx.state(pool, nnx.Param)):
            raise _HasWeights(
                f"the pool {self.pool!r} has weights, and antialias adds no parameters: use one "
                "without, or build the net with it"
            )
        return pool


class _HasWeights(Exception):
    pass


@dataclass
class Sampler:
    """A pool, and what the pools of its block decided."""

    pool: Any
    phase: Phase

    def __call__(self, x: Array) -> Array:
        if self.phase.choice is None:
            self.phase.choice = decide(self.pool, x)
        return subsample(self.pool, x, self.phase.choice)

    @property
    def decides(self) -> bool:
        return hasattr(self.pool, "choose")
