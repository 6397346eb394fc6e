"""Pools: what subsamples in an antialiased net, by name or by factory.

A net asks for a pool for a stride (`make_pool`) and knows none by name. A pool is a module that
maps `(N, H, W, C)` to every `stride`-th position, `(N, ceil(H / stride), ceil(W / stride), C)`. It
may hold variables. One whose sampling follows from what it sees defines two methods:

    choose(x) -> choice         what it decides from a feature map, any pytree of arrays
    __call__(x, choice)         subsamples by that decision

The nets call it by `decide` and `subsample` alone, and hand the choice of a residual block's main
branch to its shortcut, so that both keep the same positions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from aa_flax.arguments import parameters, whole_number
from aa_flax.errors import InputError
from aa_flax.pools.blur import BlurPool
from aa_flax.tables import Table

PoolFactory = Callable[..., Any]  # stride -> module

_POOLS: Table[PoolFactory] = Table("pool")


def register_pool(name: str, factory: PoolFactory, *, replace: bool = False) -> None:
    """Makes a pool known by name to every net: `create_model("resnet18", pool=name)`.

    Args:
        name: what `pool=` and a config's `pool` say.
        factory: called with a stride, returns a module. If it names the parameters `features`
            (channels of the maps) or `rngs`, it is given them: a pool may have weights.
        replace: whether an earlier pool of that name may be replaced.

    Raises:
        InputError: the name is taken or empty, or the factory cannot be called.
    """
    if not name or not isinstance(name, str):
        raise InputError(f"a pool's name must be a string that is not empty, got {name!r}")
    _POOLS.register(name, _callable(factory), replace=replace)


def list_pools() -> list[str]:
    """Names that `pool=` accepts; `binomial<k>` is BlurPool with k taps, as in `_lpf<k>` nets."""
    return list(_POOLS)


def pool_factory(
    filter_size: int | None, pool: str | PoolFactory | None = None
) -> PoolFactory | None:
    """What a net's constructor was told about antialiasing, as one factory; None: the baseline.

    Args:
        filter_size: taps of the binomial BlurPool.
        pool: a registered name or a factory, instead of a filter size.

    Raises:
        InputError: both are given, an unknown name, or no such thing as either.
    """
    if pool is None:
        if filter_size is None:
            return None
        return partial(BlurPool, whole_number("filter_size", filter_size, least=1))
    if filter_size is not None:
        raise InputError(
            f"pool={pool!r} and filter_size={filter_size} exclude each other: a net with a pool of "
            "its own goes by the baseline's name, without filter_size or _lpf<k>"
        )
    return _POOLS[pool] if isinstance(pool, str) else _callable(pool)


def make_pool(factory: PoolFactory | None, stride: int, *, features: int, rngs: nnx.Rngs) -> Any:
    """The pool that carries a layer's stride; None: the layer strides itself, or not at all.

    Args:
        factory: of `pool_factory`; None: a baseline.
        stride: subsampling factor of both axes.
        features: channels of the maps it will see.
        rngs: random keys, for pools with weights.

    Raises:
        InputError: the factory gave something that cannot be called.
    """
    if factory is None or stride == 1:
        return None
    offered = {"features": features, "rngs": rngs}
    named = parameters(factory)
    pool = factory(stride, **{name: value for name, value in offered.items() if name in named})
    if not callable(pool):
        raise InputError(f"the pool {factory!r} made {pool!r} for stride {stride}, not a module")
    return pool


def decide(pool: Any, x: Float[Array, "N H W C"]) -> Any:
    """The pool's choice for a feature map; None: it makes none."""
    return pool.choose(x) if hasattr(pool, "choose") else None


def subsample(pool: Any, x: Float[Array, "N H W C"], choice: Any = None) -> Float[Array, "N h w C"]:
    """The pool's output; a choice is that of `decide`, by default the one for this map."""
    if not hasattr(pool, "choose"):
        return pool(x)
    return pool(x, decide(pool, x) if choice is None else choice)


def binomial_size(pool: object) -> int | None:
    """Taps of a pool that is BlurPool itself, the same on both axes; None: another pool."""
    size = pool.filter_size if type(pool) is BlurPool else None
    return size if isinstance(size, int) else None


def _callable(factory: PoolFactory) -> PoolFactory:
    if not callable(factory):
        raise InputError(
            f"a pool is a registered name ({', '.join(_POOLS)}) or a function of the stride that "
            f"returns a module, got {factory!r}"
        )
    return factory


for _size in range(1, 8):
    register_pool(f"binomial{_size}", partial(BlurPool, _size))
