"""Operations that a pending map passes as it is: those that treat every position alike.

Elementwise work, reductions over channels, statistics over a whole batch, and changes of layout
that leave the spatial axes whole.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from aa_flax.transform.values import Pending, Spread, Value, regrouped, spread

if TYPE_CHECKING:
    from aa_flax.transform.interpreter import Interpreter


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What makes a map nonlinear in a way that activations are. Squares, roots, products and quotients
# are not among them: they are what normalisation is made of.
ACTIVATIONS = _names(
    """max min clamp select_n abs sign floor ceil round exp exp2 expm1 log log1p logistic tanh sinh
    cosh asinh acosh atanh sin cos tan asin acos atan atan2 erf erfc erf_inv cbrt rem nextafter
    lgamma digamma log2 polygamma zeta igamma igammac regularized_incomplete_beta bessel_i0e
    bessel_i1e"""
)
ELEMENTWISE = ACTIVATIONS | _names(
    """add add_any sub mul div neg square integer_pow pow sqrt rsqrt convert_element_type copy
    copy_p eq ne lt le gt ge and or xor not is_finite reduce_precision name stop_gradient real imag
    conj complex optimization_barrier pvary polynomial one_minus_square igamma_grad_a clz
    population_count shift_left shift_right_logical shift_right_arithmetic"""
)
REDUCTIONS = _names("reduce_sum reduce_max reduce_min reduce_and reduce_or")

Rule = Callable[["Interpreter", Any, list[Value]], list[Value] | None]


def elementwise(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """Runs an elementwise operation on what waits; None: it does not go together."""
    pending = [v for v in inputs if isinstance(v, Pending)]
    if not pending:
        return _on_small(run, eqn, inputs)
    if eqn.primitive.name == "optimization_barrier":
        return _barrier(run, eqn, inputs)
    if not _go_together(pending):
        return None
    largest = max(pending, key=lambda v: v.dense.size)
    operands = [_at_size(v, largest) for v in inputs]
    if any(operand is None for operand in operands):
        return None
    activated = eqn.primitive.name in ACTIVATIONS or any(v.activated for v in pending)
    places = frozenset().union(*(v.places for v in pending))
    changes = {"activated": activated, "places": places}
    return [
        largest.with_dense(dense, shape=variable.aval.shape, **changes)
        for dense, variable in zip(run.bind(eqn, operands), eqn.outvars, strict=True)
    ]


def _go_together(pending: Sequence[Pending]) -> bool:
    """Whether maps can be combined before they are subsampled.

    Those of one place always, so that a nonlinearity of several operations stays whole; those of
    several (the branches of a sum) as long as none has passed its nonlinearity.
    """
    first = pending[0]
    alike = all(v.strides == first.strides and v.waiting == first.waiting for v in pending)
    one_origin = all(v.places == first.places for v in pending)
    return alike and (one_origin or not any(v.activated for v in pending))


def _at_size(value: Value, like: Pending) -> Array | None:
    """The value for the dense map; None: it has one for each position of the original's."""
    if isinstance(value, Pending):
        return value.dense
    if isinstance(value, Spread):
        if len(value.shape) != len(like.shape) or not value.is_constant_along(like.strided):
            return None
        sizes = [like.dense.shape[i] if i in like.strided else n for i, n in enumerate(value.shape)]
        return value.to(sizes)
    if getattr(value, "ndim", 0) == 0 or _is_one_for_all_positions(value, like):
        return value
    return None


def _is_one_for_all_positions(value: Array, like: Pending) -> bool:
    """Whether an array has size 1 along the axes that wait, and not as a map of one pixel has."""
    if value.ndim != len(like.shape) or any(value.shape[i] > 1 for i in like.strided):
        return False
    one_pixel = any(like.shape[i] == 1 for i in like.strided)
    return not one_pixel or all(
        value.shape[i] == 1 for i in range(value.ndim) if like.roles[i] == "n"
    )


def _on_small(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """Runs an operation of repeated values before they are repeated."""
    small = [v for v in inputs if isinstance(v, Spread)]
    others = [v for v in inputs if not isinstance(v, Spread)]
    if not small or any(getattr(v, "ndim", 0) > 0 for v in others):
        return None
    if eqn.primitive.name == "optimization_barrier":
        return None
    sizes = zip(*(v.value.shape for v in small), strict=True)
    shape = tuple(max(axis) for axis in sizes)
    if any(v.shape != small[0].shape for v in small):
        return None
    operands = [
        lax.broadcast_in_dim(v.value, shape, range(len(shape))) if isinstance(v, Spread) else v
        for v in inputs
    ]
    return [Spread(out, small[0].shape) for out in run.bind(eqn, operands)]


def _barrier(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value]:
    """Each operand by itself: what waits goes on waiting."""
    operands = [v.dense if isinstance(v, Pending) else run.settle(v, eqn) for v in inputs]
    outputs = run.bind(eqn, operands)
    return [
        v.with_dense(out) if isinstance(v, Pending) else out
        for v, out in zip(inputs, outputs, strict=True)
    ]


def reduction(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A reduction of a pending map that does not need its positions.

    Over channels it is taken at each position of the dense map. Over the batch and all positions
    (batch statistics), or over all positions before the nonlinearity (statistics of an instance),
    it is taken over the dense map, as in a net that was built antialiased; a sum is scaled to the
    original's number of positions, since the program divides by that.
    """
    (value,) = inputs
    axes = set(eqn.params["axes"])
    if not isinstance(value, Pending):
        return None
    kept = [i for i in range(value.dense.ndim) if i not in axes]
    if not axes & set(value.strided):
        (dense,) = run.bind(eqn, [value.dense])
        return [_select_axes(value, dense, kept)]
    over_batch = any(value.roles[i] == "n" for i in axes)
    whole = set(value.strided) <= axes
    if run.alike or not whole or (value.activated and not over_batch):
        return None
    (dense,) = run.bind(eqn, [value.dense])
    if eqn.primitive.name == "reduce_sum":
        count = [prod(shape[i] for i in axes) for shape in (value.shape, value.dense.shape)]
        dense = dense * jnp.asarray(count[0] / count[1], dense.dtype)
    return [dense]


def _select_axes(value: Pending, dense: Array, axes: Sequence[int]) -> Pending:
    return value.with_dense(
        dense,
        shape=tuple(value.shape[i] for i in axes),
        strides=tuple(value.strides[i] for i in axes),
        roles="".join(value.roles[i] for i in axes),
    )


def transpose(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """Another order of axes."""
    (value,) = inputs
    order = eqn.params["permutation"]
    if isinstance(value, Spread):
        return [Spread(value.value.transpose(order), eqn.outvars[0].aval.shape)]
    if not isinstance(value, Pending):
        return None
    return [_select_axes(value, value.dense.transpose(order), order)]


def squeeze(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """Fewer axes, of those of size 1."""
    (value,) = inputs
    if not isinstance(value, Pending) or set(eqn.params["dimensions"]) & set(value.strided):
        return None
    kept = [i for i in range(value.dense.ndim) if i not in eqn.params["dimensions"]]
    dense = value.dense.reshape([value.dense.shape[i] for i in kept])
    return [_select_axes(value, dense, kept)]


def broadcast(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """New axes, and repetition: of a small array put off, of a pending map done densely."""
    value, *dynamic = inputs
    if dynamic or eqn.params["sharding"] is not None:
        return None
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    if isinstance(value, Spread):
        return [spread(value.value, shape, dims)]
    if not isinstance(value, Pending):
        repeated = prod(shape) != value.size and len(shape) >= 3
        return [spread(value, shape, dims)] if repeated else None
    dense_shape, strides, roles = list(shape), [1] * len(shape), ["c"] * len(shape)
    for i, axis in enumerate(dims):
        strides[axis], roles[axis] = value.strides[i], value.roles[i]
        if value.strides[i] > 1:
            dense_shape[axis] = value.dense.shape[i]
    dense = lax.broadcast_in_dim(value.dense, dense_shape, dims)
    changes = {"shape": tuple(shape), "strides": tuple(strides), "roles": "".join(roles)}
    return [value.with_dense(dense, **changes)]


def reshape(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """Other axes, where those that wait stay whole and in their order."""
    value, after = inputs[0], eqn.params["new_sizes"]
    if isinstance(value, Spread) and eqn.params["dimensions"] is None:
        return _with_other_ones(value, after)
    if not isinstance(value, Pending) or eqn.params["dimensions"] is not None:
        return None
    groups = regrouped(value.shape, after)
    if groups is None or any(value.shape[i] == 1 for i in value.strided):
        return None
    sizes, strides, roles = list(after), [1] * len(after), ["c"] * len(after)
    for left, right in groups:
        spatial = [i for i in left if value.roles[i] == "s"]
        if spatial and not _carried(value, spatial, left, right, after, sizes, strides, roles):
            return None
        kinds = {value.roles[i] for i in left if value.shape[i] > 1}
        if not spatial and len(kinds) > 1:
            return None
        for j in right if kinds == {"n"} else ():
            roles[j] = "n"
    changes = {"shape": tuple(after), "strides": tuple(strides), "roles": "".join(roles)}
    return [value.with_dense(value.dense.reshape(sizes), **changes)]


def _with_other_ones(value: Spread, after: Sequence[int]) -> list[Value] | None:
    """A repeated array with axes of size 1 more or fewer; None: it is reshaped otherwise."""
    if [n for n in value.shape if n > 1] != [n for n in after if n > 1]:
        return None
    pairs = zip(value.value.shape, value.shape, strict=True)
    small = iter([own for own, n in pairs if n > 1])
    return [Spread(value.value.reshape([next(small) if n > 1 else 1 for n in after]), tuple(after))]


def _carried(value, spatial, left, right, after, sizes, strides, roles) -> bool:
    """Notes where the one spatial axis of a group goes; False: it is not alone in it."""
    target = [j for j in right if after[j] == value.shape[spatial[0]]]
    others = [i for i in left if i not in spatial and value.shape[i] > 1]
    if len(spatial) > 1 or others or not target:
        return False
    sizes[target[0]] = value.dense.shape[spatial[0]]
    strides[target[0]], roles[target[0]] = value.strides[spatial[0]], "s"
    return True


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(REDUCTIONS, reduction),
    "transpose": transpose,
    "squeeze": squeeze,
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
}
