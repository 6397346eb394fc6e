"""Decides which sites are antialiased, where, and by which pool.

`Options.reasons_against` lists why a site is left alone. A rule that cannot rewrite one, or a pool
that cannot sample it, raises `Refused` with its reason.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from operator import mod
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.errors import InconclusiveDimensionOperation
from jaxtyping import Array

from aa_flax.errors import InputError, boolean, choice, first_line, integer, real
from aa_flax.nn.blur import BlurPool
from aa_flax.nn.filters import FilterPool
from aa_flax.nn.pool_registry import PoolFactory, decide, make_pool, pool_factory, subsample
from aa_flax.ops.blur import Padding, Taps, check_options, filter_taps, weakness
from aa_flax.transform.sites import Site

_Shape = tuple[int, ...]

Place = Literal["before", "after"]  # of the blur: the convolution, or the nonlinearity
Stem = Literal["leave", "blur", "dense"]

_ONLY_BLURS = "only BlurPool filters without subsampling; leave out pool"


class Refused(Exception):
    """A site stays as it is, for the reason given."""


@dataclass
class Phase:
    """The decision that pools share, if they decide anything (adaptive polyphase sampling)."""

    choice: Any = None
    sites: list[Any] = field(default_factory=list)


@dataclass
class Sampler:
    """A pool at a site, and the decision it shares with the pools of its block."""

    pool: Any
    taps: int  # of its filter, over all axes; for an unknown filter, those of a blur
    strides: _Shape
    phase: Phase = field(default_factory=Phase)

    def __call__(self, x: Array) -> Array:
        if self.phase.choice is None:
            self.phase.choice = decide(self.pool, x)
        return subsample(self.pool, x, self.phase.choice)

    def filtered(self, x: Array) -> Array:
        """Returns the map of which the pool keeps every `strides`-th position."""
        if isinstance(self.pool, FilterPool):
            return FilterPool(self.pool.taps, 1, self.pool.padding)(x)
        # The outputs for a map moved by one position are the positions between.
        choice, axes = decide(self.pool, x), tuple(range(1, x.ndim - 1))
        moved = (jnp.roll(x, np.negative(p), axes) for p in np.ndindex(*self.strides))
        phases = jnp.stack([subsample(self.pool, y, choice) for y in moved])
        shape = phases.shape[1:]
        phases = phases.reshape(*self.strides, *shape)
        n = len(axes)
        order = [n, *(i for axis in range(n) for i in (n + 1 + axis, axis)), 2 * n + 1]
        sizes = [size * s for size, s in zip(shape[1:-1], self.strides, strict=True)]
        filtered = phases.transpose(order).reshape(shape[0], *sizes, shape[-1])
        return lax.slice(filtered, (0,) * x.ndim, x.shape)

    @property
    def decides(self) -> bool:
        return hasattr(self.pool, "choose")

    def flops(self, output_shape: Sequence[int]) -> float:
        """Returns its FLOPs by definition; a multiplication and an addition are two."""
        return 2.0 * prod(output_shape) * self.taps


@dataclass(frozen=True)
class Options:
    """The options of `antialias`, checked."""

    filter_size: int | Literal["auto"]
    padding: Padding
    pool: str | PoolFactory | None
    where: Callable[[Site], bool | Place] | None
    min_channels: int
    stem: Stem
    before: bool | None
    budget: float | None = None  # FLOPs, relative to the function's; None once sites are chosen
    activations: int | None = None  # how many times as fine their grid is; None: as it is
    refusal: str = "where said no"

    def __post_init__(self):
        check_options(self.filter_size, 2, self.padding, 0)
        if self.filter_size != "auto":
            integer("filter_size", self.filter_size, least=1)  # and not one for each axis
        integer("min_channels", self.min_channels, least=0)
        choice("stem", self.stem, Stem)
        if self.before is not None:
            boolean("before", self.before)
        if self.budget is not None:
            real("budget", self.budget, least=0)
        if self.activations is not None:
            integer("activations", self.activations, least=2)
            if self.budget is not None:
                raise InputError(
                    "a budget pays for filters of sites that subsample, and activations=2 filters "
                    "activations: give one of them; where= chooses activations, too"
                )
        if self.where is not None and not callable(self.where):
            raise InputError(
                f"where must be a function from a Site to True or False, got {self.where!r}"
            )
        if (self.before or self.stem == "blur") and self.pool is not None:
            asked = "before=True" if self.before else "stem='blur'"
            raise InputError(f"{asked}: {_ONLY_BLURS}")
        if self.pool is not None and self.padding != "reflect":
            raise InputError(
                "padding is an option of BlurPool: leave it out, or give a factory that sets it"
            )
        pool_factory(None, self.pool)  # refuses an unknown pool

    def place(self, site: Site, *, pointwise: bool, linear: bool) -> Place:
        """Returns where the blur of a convolution goes.

        Args:
            pointwise: its window is one pixel.
            linear: no nonlinearity follows before something that combines positions.
        """
        asked = self._asked(site)
        if isinstance(asked, str):
            return asked
        if self._is_stem(site) and not pointwise:
            return "before" if self.stem == "blur" else "after"
        fits = linear and self.pool is None
        return "before" if pointwise or (fits if self.before is None else self.before) else "after"

    def _asked(self, site: Site) -> bool | Place:
        asked = True if self.where is None else self.where(site)
        if isinstance(asked, str) and asked not in get_args(Place):
            raise InputError(f"where must return True, False, 'before' or 'after', got {asked!r}")
        if asked == "before" and self.pool is not None:
            raise InputError(f"where returned 'before': {_ONLY_BLURS}")
        return asked

    def _is_stem(self, site: Site) -> bool:
        return site.channels is not None and site.channels < self.min_channels

    def taps(self, strides: _Shape) -> list[Taps]:
        """Returns the blur's filter of each axis at those strides."""
        return [filter_taps(self.filter_size, stride) for stride in strides]

    def weakness(self, strides: _Shape) -> str:
        """Returns what the blur leaves to alias at those strides, if that is more than half."""
        found = (weakness(*pair) for pair in zip(self.taps(strides), strides, strict=True))
        return next(filter(None, found), "") if self.pool is None else ""

    def reasons_against(self, site: Site, eqn: Any, jaxpr: Any) -> Iterator[str]:
        """Yields why a site should not be antialiased, or cannot; the first reason is reported."""
        params, dtype, asked = eqn.params, eqn.invars[0].aval.dtype, self._asked(site)
        dilated = max(params.get("base_dilation", ()), default=1) > 1
        if self._is_stem(site) and self.stem == "leave" and not isinstance(asked, str):
            yield (
                f"its input has {site.channels} channels, fewer than "
                f"min_channels={self.min_channels}; stem='blur' or 'dense' antialiases it"
            )
        if not asked:
            yield self.refusal
        if site.kind == "convolution":
            if max(params["lhs_dilation"]) > 1:
                yield "its input is dilated: it changes the resolution by a fraction"
            if params["batch_group_count"] > 1:
                yield "it has groups of the batch"
        elif site.kind == "average pool":
            yield from _reasons_against_average(self, site)
            if dilated or max(params.get("window_dilation", ()), default=1) > 1:
                yield "it is dilated"
        elif site.kind == "other pool":
            yield f"{site.primitive} is not a known pool"
        elif site.kind == "slice":
            yield from _reasons_against_slice(site, eqn, jaxpr)
        elif dilated:
            yield "its input is dilated"
        if not jnp.issubdtype(dtype, jnp.floating):
            yield f"{dtype} values have no mean"

    def sampler(
        self, strides: _Shape, dense: _Shape, sampled: _Shape, dtype: Any, *, keeps: bool = False
    ) -> Sampler:
        """Returns the pool for maps of shape `dense` and results `sampled`, `(N, *spatial, C)`.

        One that `keeps` all pixels only filters them, for those strides.
        """
        factory, filters = pool_factory(None, self.pool), self.taps(strides)
        try:
            if factory is None:
                pool = FilterPool(filters, 1 if keeps else strides, self.padding)
            elif len(set(strides)) > 1:
                raise ValueError(f"it takes one stride for all axes, not {strides}")
            else:
                pool = make_pool(factory, strides[0], features=dense[-1], rngs=nnx.Rngs(0))
            maps = jax.ShapeDtypeStruct(dense, dtype)
            has_weights = isinstance(pool, nnx.Module) and jax.tree.leaves(
                nnx.state(pool, nnx.Param)
            )
            found = has_weights or jax.eval_shape(lambda x: subsample(pool, x), maps).shape
        except InconclusiveDimensionOperation:  # open sizes: `antialias` explains
            raise
        except Exception as error:
            raise Refused(f"the pool refuses it: {first_line(error)}") from error
        if has_weights:
            raise InputError(
                f"the pool {self.pool!r} has weights, and antialias adds no parameters: use one "
                "without, or build the model with it"
            )
        if found != sampled:
            raise Refused(f"the pool makes {found} of {dense}, not {sampled}")
        if isinstance(pool, BlurPool):
            filters = [filter_taps(pool.filter_size, stride) for stride in strides]
        return Sampler(pool, prod(map(len, filters)), strides)


def _reasons_against_average(options: Options, site: Site) -> Iterator[str]:
    """Yields why a blur would not be the better filter."""
    pairs = zip(site.shape, site.output_shape, strict=True)
    pooled = [out for size, out in pairs if size != out or size == 1]
    if pooled and all(size == 1 for size in pooled):
        yield "it is the mean of the whole map: nothing is left to alias"
    widest = max(map(len, options.taps(site.strides)))
    if max(site.strides) > 2 and options.pool is None and min(site.window) >= widest:
        yield f"a mean of {min(site.window)} pixels is a wider filter than one of {widest} taps"


def _reasons_against_slice(site: Site, eqn: Any, jaxpr: Any) -> Iterator[str]:
    """Yields why a slice does not look like that of an image that is subsampled."""
    source, strides = eqn.invars[0], eqn.params["strides"]
    axes = tuple(i for i, stride in enumerate(strides) if stride > 1)
    images = {(1, 2), (2, 3), (1, 2, 3), (2, 3, 4), (0, 1)}
    if axes not in images or len(strides) < 3:
        yield "its axes are not known to be those of images"
    # As in space-to-depth, a wavelet transform, or a mean of shifted slices.
    phases = {
        tuple(map(mod, other.params["start_indices"], strides))
        for other in jaxpr.eqns
        if other.primitive.name == "slice" and other.invars[0] is source
        if other.params["strides"] == strides
    }
    if len(phases) > 1:
        yield (
            "other slices of the same array keep what it drops: together they rearrange, pool or "
            "filter it"
        )
