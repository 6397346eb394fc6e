"""Pools: what subsamples in an antialiased net, by name or by factory.

A net asks for a pool for a stride (`make_pool`) and knows none by name. A pool is a module that
maps `(N, H, W, C)` to every `stride`-th position, `(N, ceil(H / stride), ceil(W / stride), C)`. It
may hold variables. One whose sampling follows from what it sees defines two methods:

    choose(x) -> choice         what it decides from a feature map, any pytree of arrays
    __call__(x, choice)         subsamples by that decision

The nets call it by `decide` and `subsample` alone, and hand the choice of a residual block's main
branch to its shortcut, so that both keep the same positions.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from aa_flax.errors import (
    InputError,
    Table,
    UnknownName,
    integer,
    integers,
    parameters,
    unknown,
)
from aa_flax.pools.blur import BlurPool

PoolFactory = Callable[..., Any]  # stride -> module

_POOLS: Table[Any] = Table("pool")  # factories, and families of them by a name in `<k>`
_ANY = "<k>"


def register_pool(
    name: str, factory: PoolFactory, *, widths: Sequence[int] = (), replace: bool = False
) -> None:
    """Makes a pool known by name to every net: `create_model("resnet18", pool=name)`.

    Args:
        name: what `pool=` and a config's `pool` say. One that ends in `<k>` stands for every whole
            number there: `gaussian<k>` for `gaussian5`.
        factory: called with a stride, returns a module; of a name in `<k>` with k and a stride. If
            it names the parameters `features` (channels of the maps), `rngs` or `follows` (whether
            it will always be given another pool's choice), it is given them: a pool may have
            weights.
        widths: numbers k that `list_pools` lists, of a name in `<k>`; all others are made, too.
        replace: whether an earlier pool of that name may be replaced.

    Raises:
        InputError: the name is taken or empty, or the factory cannot be called.
    """
    if not name or not isinstance(name, str):
        raise InputError(f"a pool's name must be a string that is not empty, got {name!r}")
    entry: PoolFactory | _Family = _callable(factory)
    if bool(widths) != name.endswith(_ANY):
        raise InputError(f"widths go with a name that ends in {_ANY}, got {name!r} and {widths}")
    if widths:
        entry = _Family(factory, integers("widths", widths))
    elif not replace and name not in _POOLS and _of_family(name):
        raise InputError(
            f"there is a pool {name!r} already, one of {_family_name(name)!r}; choose another "
            "name, or give replace=True"
        )
    if _POOLS.get(name) != entry:  # or the same again
        _POOLS.register(name, entry, replace=replace)


def list_pools() -> list[str]:
    """Names that `pool=` accepts; a number at the end, of taps, may be any other: `gaussian9`.

    `binomial<k>` is BlurPool with k taps, as in `_lpf<k>` nets.
    """
    names = []
    for name, pool in _POOLS.items():
        numbered = isinstance(pool, _Family)
        names += [name.replace(_ANY, str(k)) for k in pool.widths] if numbered else [name]
    return names


class _Family(NamedTuple):
    """Pools of one name and any number behind it."""

    factory: PoolFactory  # of the number and a stride
    widths: tuple[int, ...]


def _family_name(name: str) -> str:
    """`gaussian<k>` for `gaussian5`."""
    return re.sub(r"[1-9]\d*$", _ANY, name)


def _of_family(name: str) -> PoolFactory | None:
    """The factory of a name with a number behind it; None: there is none."""
    family = _POOLS.get(_family_name(name))
    if not isinstance(family, _Family) or name.endswith(_ANY):
        return None
    width = int(name.removeprefix(_family_name(name).removesuffix(_ANY)))
    return partial(family.factory, width)


def _named(name: str) -> PoolFactory:
    factory = _of_family(name) if name not in _POOLS or name.endswith(_ANY) else _POOLS[name]
    if factory is None:
        raise UnknownName(unknown("pool", name, list_pools()))
    return factory


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
        return partial(BlurPool, integer("filter_size", filter_size, least=1))
    if filter_size is not None:
        raise InputError(
            f"pool={pool!r} and filter_size={filter_size} exclude each other: a net with a pool of "
            "its own goes by the baseline's name, without filter_size or _lpf<k>"
        )
    return _named(pool) if isinstance(pool, str) else _callable(pool)


def make_pool(
    factory: PoolFactory | None,
    stride: int,
    *,
    features: int,
    rngs: nnx.Rngs,
    follows: bool = False,
) -> Any:
    """The pool that carries a layer's stride; None: the layer strides itself, or not at all.

    Args:
        factory: of `pool_factory`; None: a baseline.
        stride: subsampling factor of both axes.
        features: channels of the maps it will see.
        rngs: random keys, for pools with weights.
        follows: whether it will always be given the choice of another pool.

    Raises:
        InputError: the factory gave something that cannot be called.
    """
    if factory is None or stride == 1:
        return None
    offered = {"features": features, "rngs": rngs, "follows": follows}
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
            f"a pool is a registered name ({', '.join(list_pools())}) or a function of the stride "
            f"that returns a module, got {factory!r}"
        )
    return factory


register_pool("binomial<k>", BlurPool, widths=range(1, 8))
