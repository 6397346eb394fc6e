"""Values of the original program's variables while its antialiased version runs.

A value is an array, or one of two kinds that are evaluated later: a map whose stride is *pending*,
and an array that has not been *spread* to the shape it has in the original yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


@dataclass
class Pending:
    """A map computed densely, whose stride waits for the nonlinearity."""

    dense: Array  # the map before subsampling
    shape: tuple[int, ...]  # in the original program
    strides: tuple[int, ...]  # for each axis, 1 where nothing waits
    roles: str  # of each axis: `n` (batch), `s` (spatial) or `c` (channels and all others)
    sample: Any  # the `Sampler` of maps given as `(N, *spatial, C)`
    sites: frozenset[Any]  # keys of those it comes from
    activated: bool = False  # it has passed a nonlinearity
    reduced: bool = False  # it is a statistic over the channels of each position
    # The interpolations that it comes from, if it is on the finer grid of `activations`; and its
    # value without them, for statistics.
    origins: frozenset[Any] = frozenset()
    plain: Any = None

    @cached_property
    def sampled(self) -> Array:
        """The map as the original program has it, antialiased."""
        if jnp.issubdtype(self.dense.dtype, jnp.floating):
            return on_channels_last(self.sample, self.dense, self.roles)
        # A mask has no mean.
        return lax.slice(self.dense, (0,) * self.dense.ndim, self.dense.shape, self.strides)

    def with_axes(self, dense: Array, axes: Sequence[int]) -> "Pending":
        """Returns this map with those of its axes, in that order; `dense` has them already."""
        shape, strides = ([sizes[i] for i in axes] for sizes in (self.shape, self.strides))
        return self.laid_out(dense, shape, strides, [self.roles[i] for i in axes])

    def laid_out(
        self, dense: Array, shape: Sequence[int], strides: Sequence[int], roles: Sequence[str]
    ) -> "Pending":
        """Returns this map with other axes."""
        axes = {"shape": tuple(shape), "strides": tuple(strides), "roles": "".join(roles)}
        return replace(self, dense=dense, plain=None, **axes)

    @property
    def strided(self) -> tuple[int, ...]:
        return tuple(i for i, stride in enumerate(self.strides) if stride > 1)

    @property
    def waiting(self) -> list[tuple[int, int]]:
        """Strides and dense sizes of the axes that wait."""
        return [(self.strides[i], self.dense.shape[i]) for i in self.strided]

    def phases(self) -> Array:
        """Returns the dense map with an axis of phases after each axis that waits.

        A map whose size is no multiple of the stride is continued by its edge.
        """
        x, sizes = self.dense, []
        for i, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            missing = size * stride - x.shape[i]
            if stride > 1 and missing != 0:
                edge = lax.slice_in_dim(x, x.shape[i] - 1, None, axis=i)
                tail = jnp.broadcast_to(edge, (*x.shape[:i], missing, *x.shape[i + 1 :]))
                x = lax.concatenate([x, tail], i)
            sizes += [size, stride] if stride > 1 else [size]
        return x.reshape(sizes)

    def of_phases(self, x: Array) -> "Pending":
        """Returns the inverse of `phases`, for a map that waits as this one does."""
        sizes = [n * stride for n, stride in zip(self.shape, self.strides, strict=True)]
        dense = lax.slice(x.reshape(sizes), (0,) * len(sizes), self.dense.shape)
        return replace(self, dense=dense, plain=None)


@dataclass
class Spread:
    """An array with axes of size 1 that the original program has repeated to `shape`.

    A bias, say, is broadcast to the subsampled map's shape before it is added. Kept small, it fits
    the dense map as well.
    """

    value: Array
    shape: tuple[int, ...]

    @cached_property
    def full(self) -> Array:
        return self.to(self.shape)

    def to(self, shape: Sequence[int]) -> Array:
        return lax.broadcast_in_dim(self.value, tuple(shape), tuple(range(len(shape))))


Value = Any  # Array | Pending | Spread, or what is no array: a key, a token


def bare(value: Value) -> Any:
    """Returns the array inside a value, which `wrapped` makes a value of the same kind again."""
    return getattr(value, "dense", getattr(value, "value", value))


def wrapped(template: Value, array: Any) -> Value:
    """Returns the value with another array inside."""
    if isinstance(template, Pending):
        return replace(template, dense=array, plain=None)
    return Spread(array, template.shape) if isinstance(template, Spread) else array


def spread(operand: Array, shape: Sequence[int], dims: Sequence[int]) -> Spread:
    """Returns `lax.broadcast_in_dim` of an operand, to be evaluated later."""
    small = [1] * len(shape)
    for size, axis in zip(operand.shape, dims, strict=True):
        small[axis] = size
    return Spread(lax.broadcast_in_dim(operand, small, tuple(dims)), tuple(shape))


def on_channels_last(function: Callable[[Array], Array], x: Array, roles: str) -> Array:
    """Applies a function of maps `(N, *spatial, C)` to a map of any layout, which is kept."""
    order = [i for role in "nsc" for i, own in enumerate(roles) if own == role]
    batch, rest = ([x.shape[i] for i in order if roles[i] == role] for role in "nc")
    y = function(x.transpose(order).reshape(channels_last_shape(x.shape, roles)))
    y = y.reshape(*batch, *y.shape[1:-1], *rest)
    return y.transpose([order.index(i) for i in range(x.ndim)]).astype(x.dtype)


def channels_last_shape(shape: Sequence[int], roles: str) -> tuple[int, ...]:
    """Returns the shape that `on_channels_last` shows its function."""
    of = {role: [n for n, own in zip(shape, roles, strict=True) if own == role] for role in "nsc"}
    return (prod(of["n"]), *of["s"], prod(of["c"]))


def reshaped(
    roles: str, before: Sequence[int], after: Sequence[int]
) -> tuple[str, dict[int, int]] | None:
    """Returns the roles of axes after a reshape, and which spatial axis becomes which.

    None if it splits a spatial axis or merges it with another, but for those of size 1.
    """
    groups, found, moved = regrouped(before, after), ["c"] * len(after), {}
    for left, right in groups or ():
        spatial = [i for i in left if roles[i] == "s"]
        kinds = {roles[i] for i in left if before[i] > 1}
        if spatial:
            # One spatial axis, alone in its group, to which ones may have been added.
            target = [j for j in right if after[j] == before[spatial[0]]]
            if len(spatial) > 1 or kinds - {"s"} or not target:
                return None
            found[target[0]], moved[spatial[0]] = "s", target[0]
        elif len(kinds) > 1:
            return None
        for j in right if kinds == {"n"} else ():
            found[j] = "n"
    return None if groups is None else ("".join(found), moved)


def regrouped(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]] | None:
    """Returns which axes of a reshape become which, as the finest groups of equal size, or None.

    Axes of size 1 at the end belong to the last group.
    """
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        # Take axes from the side whose product is smaller until both are equal.
        left, right, m, n = [], [], 1, 1
        while not left or not right or m != n:
            if i < len(before) and (not left or m < n):
                m *= before[i]
                left.append(i)
                i += 1
            elif j < len(after) and (not right or n < m):
                n *= after[j]
                right.append(j)
                j += 1
            else:
                break
        if m != n:
            return None
        if groups and (not left or not right):  # trailing ones
            groups[-1][0].extend(left)
            groups[-1][1].extend(right)
        else:
            groups.append((left, right))
    return groups
