"""The registry of pools: layers that subsample in an antialiased model, by name or by factory.

A model requests a pool for a stride (`make_pool`) and refers to none by name. A pool is a module
that maps `(N, H, W, C)` to `(N, ceil(H / stride), ceil(W / stride), C)`. It may have variables. A
pool whose sampling grid depends on its input defines two methods:

    choose(x) -> choice         the decision for a feature map, any pytree of arrays
    __call__(x, choice)         subsamples by that decision

Models call pools by `decide` and `subsample`, and pass the choice of a residual block's main branch
to its shortcut, so that both keep the same positions.
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
from aa_flax.nn.blur import BlurPool

PoolFactory = Callable[..., Any]  # stride -> module

_POOLS: Table[Any] = Table("pool")  # factories, and families of them by a name in `<k>`
_ANY = "<k>"


def register_pool(
    name: str, factory: PoolFactory, *, widths: Sequence[int] = (), replace: bool = False
) -> None:
    """Registers a pool under a name for all models: `create_model("resnet18", pool=name)`.

    Args:
        name: name for `pool=` and for a config's `pool`. A name that ends in `<k>` stands for any
            integer there: `gaussian<k>` for `gaussian5`.
        factory: function of a stride that returns a module; for a name in `<k>`, of k and a stride.
            Parameters named `features` (channels of the maps), `rngs` and `follows` (True if
            another pool's choice is always given) are passed to it, so a pool may have weights.
        widths: numbers k that `list_pools` lists for a name in `<k>`; all others work, too.
        replace: True to replace an earlier pool of that name.

    Raises:
        InputError: the name is taken or empty, or the factory is not callable.

    Examples:
        >>> import aa_flax
        >>> def every_other(stride):
        ...     return lambda x: x[:, ::stride, ::stride]
        >>> aa_flax.register_pool("every_other", every_other, replace=True)
        >>> "every_other" in aa_flax.list_pools()
        True
    """
    if not name or not isinstance(name, str):
        raise InputError(f"a pool's name must be a non-empty string, got {name!r}")
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
    """Returns the names that `pool=` accepts; the number of taps may be any other: `gaussian9`.

    `binomial<k>` is BlurPool with k taps, as in `_lpf<k>` models.

    Examples:
        >>> import aa_flax
        >>> aa_flax.list_pools()[:3]
        ['binomial1', 'binomial2', 'binomial3']
    """
    names = []
    for name, pool in _POOLS.items():
        numbered = isinstance(pool, _Family)
        names += [name.replace(_ANY, str(k)) for k in pool.widths] if numbered else [name]
    return names


class _Family(NamedTuple):
    """Pools of one name followed by any number."""

    factory: PoolFactory  # of the number and a stride
    widths: tuple[int, ...]


def _family_name(name: str) -> str:
    """Returns `gaussian<k>` for `gaussian5`."""
    return re.sub(r"[1-9]\d*$", _ANY, name)


def _of_family(name: str) -> PoolFactory | None:
    """Returns the factory for a name that ends in a number, or None."""
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
    """Returns the factory for a model's `filter_size` and `pool`; None for the baseline.

    Args:
        filter_size: taps of the binomial BlurPool.
        pool: a registered name or a factory, instead of a filter size.

    Raises:
        InputError: both are given, an unknown name, or a value of another kind.
    """
    if pool is None:
        if filter_size is None:
            return None
        return partial(BlurPool, integer("filter_size", filter_size, least=1))
    if filter_size is not None:
        raise InputError(
            f"pool={pool!r} and filter_size={filter_size} exclude each other: with pool=, use the "
            "baseline's name, without filter_size or _lpf<k>"
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
    """Makes the pool that applies a layer's stride; None if the layer applies it, or has none.

    Args:
        factory: that of `pool_factory`; None for a baseline.
        stride: subsampling factor of both axes.
        features: channels of the maps.
        rngs: random keys, for pools with weights.
        follows: True if another pool's choice is always given.

    Raises:
        InputError: the factory returned something that is not callable.
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
    """Returns the pool's choice for a feature map; None if it makes none."""
    return pool.choose(x) if hasattr(pool, "choose") else None


def subsample(pool: Any, x: Float[Array, "N H W C"], choice: Any = None) -> Float[Array, "N h w C"]:
    """Applies a pool, by the choice of `decide` for this map unless another one is given.

    Without a pool (None, see `make_pool`) the map stays as it is.
    """
    if pool is None:
        return x
    if not hasattr(pool, "choose"):
        return pool(x)
    return pool(x, decide(pool, x) if choice is None else choice)


def binomial_size(pool: object) -> int | None:
    """Returns the taps of a BlurPool with the same filter on both axes; None for other pools."""
    size = pool.filter_size if type(pool) is BlurPool else None
    return size if isinstance(size, int) else None


def _callable(factory: PoolFactory) -> PoolFactory:
    if not callable(factory):
        raise InputError(
            f"a pool is a registered name ({', '.join(list_pools())}) or a function of the stride "
            f"that returns a module, got {factory!r}"
        )
    return factory
