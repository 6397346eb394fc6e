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

from aa_flax.errors import InputError, Table, UnknownName, integer, integers, parameters, unknown
from aa_flax.nn.blur import BlurPool

PoolFactory = Callable[..., Any]  # stride -> module

_POOLS: Table[Any] = Table("pool")  # factories, and families of them by a name in `<k>`
_ANY = "<k>"


class _Family(NamedTuple):
    factory: PoolFactory  # of a number and a stride
    widths: tuple[int, ...]


def register_pool(
    name: str, factory: PoolFactory, *, widths: Sequence[int] = (), replace: bool = False
) -> None:
    """Registers a pool under a name for all models: `create_model("resnet18", pool=name)`.

    Args:
        name: one that ends in `<k>` stands for any integer there: `gaussian<k>` for `gaussian5`.
        factory: function of a stride that returns a module; for a name in `<k>`, of k and a stride.
            Parameters named `features` (channels of the maps), `rngs` and `follows` (True if
            another pool's choice is always given) are passed to it, so a pool may have weights.
        widths: numbers k that `list_pools` lists for a name in `<k>`; all others work, too.

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
    elif not replace and name not in _POOLS and (member := _family_member(name)):
        raise InputError(
            f"there is a pool {name!r} already, one of {member[0]!r}; choose another name, or give "
            "replace=True"
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


def _family_member(name: str) -> tuple[str, PoolFactory] | None:
    """Returns `gaussian<k>` and the factory of `gaussian5`, or None if there is no such family."""
    if not (match := re.fullmatch(r"(.*?)([1-9]\d*)", name)):
        return None
    family = _POOLS.get(match[1] + _ANY)
    return family and (match[1] + _ANY, partial(family.factory, int(match[2])))


def pool_factory(
    filter_size: int | None, pool: str | PoolFactory | None = None
) -> PoolFactory | None:
    """Returns the factory for a model's `filter_size` or `pool`; None for the baseline.

    Raises:
        InputError: both are given, an unknown name, or a value of another kind.
    """
    if filter_size is None and pool is None:
        return None
    if pool is None:
        return partial(BlurPool, integer("filter_size", filter_size, least=1))
    if filter_size is not None:
        raise InputError(
            f"pool={pool!r} and filter_size={filter_size} exclude each other: with pool=, use the "
            "baseline's name, without filter_size or _lpf<k>"
        )
    if not isinstance(pool, str):
        return _callable(pool)
    if pool in _POOLS and not pool.endswith(_ANY):
        return _POOLS[pool]
    if member := _family_member(pool):
        return member[1]
    raise UnknownName(unknown("pool", pool, list_pools()))


def make_pool(
    factory: PoolFactory | None,
    stride: int,
    *,
    features: int,
    rngs: nnx.Rngs,
    follows: bool = False,
) -> Any:
    """Makes the pool that applies a layer's stride; None if the layer applies it, or has none.

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
    return pool(x, pool.choose(x) if choice is None else choice)


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
