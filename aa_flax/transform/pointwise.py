"""Rules for operations that treat every position alike, which a pending map passes densely.

Elementwise work, reductions over channels, statistics over a whole batch, and changes of layout
that leave the spatial axes whole.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from aa_flax.transform.activations import begin, begun, is_curved, is_fine, joined, leave
from aa_flax.transform.axes import ACTIVATIONS, ELEMENTWISE
from aa_flax.transform.decisions import Refused
from aa_flax.transform.interpreter import Interpreter, rule
from aa_flax.transform.jaxpr import bind
from aa_flax.transform.values import Pending, Spread, Value, bare, reshaped, spread, wrapped


@rule(*ELEMENTWISE)
def elementwise(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """An elementwise operation, on the finer grid where it is, or begins, an activation there."""
    goes_on, curved = any(map(is_fine, inputs)), is_curved(run, eqn, inputs)
    key = begin(run, eqn, inputs) if curved and not goes_on else None
    if not goes_on and key is None:
        return _densely(run, eqn, inputs)
    outputs, reason = None, "its operands cannot be combined on a finer grid"
    try:
        outputs = _densely(run, eqn, joined(run, eqn, inputs, curved=curved), curved=curved)
    except Refused as refusal:
        reason = str(refusal)
    if outputs is not None and goes_on:
        return outputs
    plain = _densely(run, eqn, inputs)
    if outputs is None:
        if curved:
            leave(run, eqn, inputs, reason)
        return plain
    if eqn.primitive.name in ACTIVATIONS:
        return begun(outputs, key)
    (plain,) = plain or bind(eqn, [run.settle(v, eqn) for v in inputs])
    return begun(outputs, key, plain)


def _densely(
    run: Interpreter, eqn: Any, inputs: list[Value], *, curved: bool = False
) -> list[Value] | None:
    """An elementwise operation on dense maps; None if its operands cannot be combined densely.

    One on a finer grid that is `curved` activates maps, even if it is not an activation by itself.
    """
    pending = [v for v in inputs if isinstance(v, Pending)]
    if not pending:
        return _on_small(run, eqn, inputs)
    if not _combine(pending, curved=curved):
        return None
    largest = max(pending, key=lambda v: v.dense.size)
    operands = [_at_size(v, largest) for v in inputs]
    if any(operand is None for operand in operands):
        return None
    reduced = all(v.reduced for v in pending)  # max(variance, 0) is not an activation
    activates = curved or (eqn.primitive.name in ACTIVATIONS and not reduced)
    activated = activates or any(v.activated for v in pending)
    sites = frozenset().union(*(v.sites for v in pending))
    origins = frozenset().union(*(v.origins for v in pending))
    combined = replace(
        largest, activated=activated, reduced=reduced, sites=sites, origins=origins, plain=None
    )
    return [
        replace(combined, dense=dense, shape=variable.aval.shape)
        for dense, variable in zip(bind(eqn, operands), eqn.outvars, strict=True)
    ]


def _combine(pending: Sequence[Pending], *, curved: bool) -> bool:
    """Checks whether maps can be combined before they are subsampled.

    Maps of one site always can, so that a nonlinearity of several operations stays whole. Maps of
    several sites (the branches of a sum) can until one of them has passed its nonlinearity: then
    the antialiased models of the paper blur each branch, and sum what is subsampled. On the finer
    grid of activations a nonlinearity of both is part of theirs.
    """
    first = pending[0]
    alike = all(v.strides == first.strides and v.waiting == first.waiting for v in pending)
    one_origin = all(v.sites == first.sites for v in pending)
    if any(v.origins for v in pending):
        one_origin = curved or len({v.origins for v in pending}) == 1
    return alike and (one_origin or not any(v.activated for v in pending))


def _at_size(value: Value, like: Pending) -> Array | None:
    """Returns the value at the dense map's size, or None if each position has its own."""
    if isinstance(value, Pending):
        return value.dense
    small = getattr(bare(value), "shape", ())
    if not small:
        return value
    if len(small) != len(like.shape) or any(small[i] > 1 for i in like.strided):
        return None
    if isinstance(value, Spread):
        sizes = [like.dense.shape[i] if i in like.strided else n for i, n in enumerate(value.shape)]
        return value.to(sizes)
    # A map of one pixel has size 1 there, too, but is no constant: it differs between images.
    is_one_pixel = any(like.shape[i] == 1 for i in like.strided)
    differs = any(n > 1 for n, role in zip(value.shape, like.roles, strict=True) if role == "n")
    return None if is_one_pixel and differs else value


def _on_small(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """Applies an operation to repeated values before they are repeated."""
    small = [v for v in inputs if isinstance(v, Spread)]
    others = [v for v in inputs if not isinstance(v, Spread)]
    if len({v.shape for v in small}) != 1 or any(getattr(v, "ndim", 0) > 0 for v in others):
        return None
    shape = [max(axis) for axis in zip(*(v.value.shape for v in small), strict=True)]
    operands = [v.to(shape) if isinstance(v, Spread) else v for v in inputs]
    return [Spread(out, small[0].shape) for out in bind(eqn, operands)]


@rule("optimization_barrier")
def barrier(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value]:
    """A barrier, which combines nothing: each operand by itself."""
    values = [v if isinstance(v, Pending) else run.settle(v, eqn) for v in inputs]
    return list(map(wrapped, values, bind(eqn, list(map(bare, values)))))


@rule("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or")
def reduction(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A reduction of a pending map that does not need its positions.

    A reduction over channels runs at each position of the dense map. One over the batch and all
    positions (batch statistics), or over all positions before the nonlinearity (statistics of an
    instance), runs over the dense map, as in a model that was built antialiased.
    """
    (value,) = inputs
    axes = set(eqn.params["axes"])
    if not isinstance(value, Pending):
        return None
    if value.plain is not None:  # of squares, say: a statistic is not the activation's
        return reduction(run, eqn, [value.plain]) or bind(eqn, [run.settle(value.plain, eqn)])
    kept = [i for i in range(value.dense.ndim) if i not in axes]
    if not axes & set(value.strided):
        (dense,) = bind(eqn, [value.dense])
        is_sum = eqn.primitive.name == "reduce_sum"
        value = replace(value, reduced=is_sum, activated=value.activated or not is_sum)
        return [value.with_axes(dense, kept)]
    over_batch = any(value.roles[i] == "n" for i in axes)
    whole = set(value.strided) <= axes
    if run.alike or not whole or (value.activated and not over_batch):
        return None
    (dense,) = bind(eqn, [value.dense])
    if eqn.primitive.name == "reduce_sum":  # which the program divides by its number of positions
        count = [prod(shape[i] for i in axes) for shape in (value.shape, value.dense.shape)]
        dense = dense * jnp.asarray(count[0] / count[1], dense.dtype)
    return [dense]


@rule("transpose", "squeeze")
def rearranged(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """Another order of axes, or fewer of size 1."""
    (value,), dropped = inputs, eqn.params.get("dimensions", ())
    if isinstance(value, Spread):
        return [Spread(bind(eqn, [value.value])[0], eqn.outvars[0].aval.shape)]
    if not isinstance(value, Pending) or set(dropped) & set(value.strided):
        return None
    kept = [i for i in range(value.dense.ndim) if i not in dropped]
    return [value.with_axes(bind(eqn, [value.dense])[0], eqn.params.get("permutation", kept))]


@rule("broadcast_in_dim")
def broadcast(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """New axes, and repetition: later for a small array, densely for a pending map."""
    value, *dynamic = inputs
    if dynamic or eqn.params["sharding"] is not None:
        return None
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    if isinstance(value, Spread):
        return [spread(value.value, shape, dims)]
    if not isinstance(value, Pending):
        if not hasattr(value, "shape"):  # a constant
            value = jnp.asarray(value, eqn.outvars[0].aval.dtype)
        repeated = prod(shape) != value.size and len(shape) >= 3
        return [spread(value, shape, dims)] if repeated else None
    dense_shape, strides, roles = list(shape), [1] * len(shape), ["c"] * len(shape)
    for i, axis in enumerate(dims):
        strides[axis], roles[axis] = value.strides[i], value.roles[i]
        if value.strides[i] > 1:
            dense_shape[axis] = value.dense.shape[i]
    dense = lax.broadcast_in_dim(value.dense, dense_shape, dims)
    return [value.laid_out(dense, shape, strides, roles)]


@rule("reshape")
def reshape(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A reshape that leaves the axes that wait whole and in their order."""
    value, after = inputs[0], eqn.params["new_sizes"]
    if isinstance(value, Spread) and eqn.params["dimensions"] is None:
        return _with_other_ones(value, after)
    if not isinstance(value, Pending) or eqn.params["dimensions"] is not None:
        return None
    found = reshaped(value.roles, value.shape, after)
    if found is None or any(value.shape[i] == 1 for i in value.strided):
        return None
    (roles, moved), sizes, strides = found, list(after), [1] * len(after)
    for source, target in moved.items():
        sizes[target], strides[target] = value.dense.shape[source], value.strides[source]
    return [value.laid_out(value.dense.reshape(sizes), after, strides, roles)]


def _with_other_ones(value: Spread, after: Sequence[int]) -> list[Value] | None:
    """A repeated array with more or fewer axes of size 1; None for any other reshape."""
    if [n for n in value.shape if n > 1] != [n for n in after if n > 1]:
        return None
    pairs = zip(value.value.shape, value.shape, strict=True)
    small = iter([own for own, n in pairs if n > 1])
    return [Spread(value.value.reshape([next(small) if n > 1 else 1 for n in after]), tuple(after))]
