"""Elementwise operations by name, and which axes of a program's maps are spatial.

A convolution says which axes of its result are spatial. Operations after it keep, move or drop
them; `map_after` follows these until an operation mixes spatial axes with others.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from aa_flax.transform.jaxpr import Rules, eqns_in, opened, sub_jaxprs
from aa_flax.transform.values import reshaped


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations of activations. Squares, roots, products and quotients are not among them although
# they are nonlinear: normalization consists of them, and comes before the activation.
ACTIVATIONS = _names(
    """max min clamp select_n abs sign floor ceil round exp exp2 expm1 log log1p logistic tanh sinh
    cosh asinh acosh atanh sin cos tan asin acos atan atan2 erf erfc erf_inv cbrt rem nextafter
    lgamma digamma log2 polygamma zeta igamma igammac regularized_incomplete_beta bessel_i0e
    bessel_i1e"""
)
COMPARISONS = _names("eq ne lt le gt ge is_finite")
POWERS = _names("square integer_pow pow sqrt rsqrt")
ELEMENTWISE = (
    ACTIVATIONS
    | COMPARISONS
    | POWERS
    | _names(
        """add add_any sub mul div neg convert_element_type copy
        copy_p and or xor not reduce_precision name stop_gradient real imag
        conj complex pvary polynomial one_minus_square igamma_grad_a clz
        population_count shift_left shift_right_logical shift_right_arithmetic"""
    )
)


class Map(NamedTuple):
    """Facts about a value of the program that has spatial axes."""

    roles: str  # of each axis, as in `Pending`
    reduced: bool = False  # it is a statistic over the channels of each position


def has_convolutions(*jaxprs: Any) -> bool:
    """Checks whether one of the programs, or one that they call, has a convolution."""
    every = (eqn for jaxpr in jaxprs for eqn in eqns_in(opened(jaxpr)[0]))
    return any(eqn.primitive.name == "conv_general_dilated" for eqn in every)


def activations_in(eqn: Any) -> Iterator[Any]:
    """Yields the activations of maps in an equation and all that it calls.

    A map is an array with three axes of more than one element.
    """
    inner = (found for jaxpr, _ in sub_jaxprs(eqn) for found in eqns_in(jaxpr))
    for found in (eqn, *inner):
        shapes = [v.aval.shape for v in found.invars if hasattr(v.aval, "shape")]
        is_map = any(sum(n > 1 for n in shape) >= 3 for shape in shapes)
        if is_map and found.primitive.name in ACTIVATIONS - {"select_n"}:
            yield found


# A rule maps an equation and facts about its operands (None: no map) to those of its results.
_rule = Rules()


def map_after(eqn: Any, inputs: Sequence[Map | None]) -> Map | None:
    """Returns facts about the results of an equation, if their spatial axes are known."""
    if not any(m and m.roles for m in inputs) and eqn.primitive.name != "conv_general_dilated":
        return None
    found = _rule.apply(eqn.primitive.name, eqn, inputs)
    return found if found and "s" in found.roles else None


def roles_of(spec: Sequence[int]) -> str:
    """Returns the role of each axis of a convolution's operand or result."""
    return "".join("nc"[spec.index(i)] if i in spec[:2] else "s" for i in range(len(spec)))


@_rule("conv_general_dilated")
def _convolution(eqn: Any, inputs: Sequence[Map | None]) -> Map:
    return Map(roles_of(eqn.params["dimension_numbers"].out_spec))


@_rule(
    *ELEMENTWISE,
    *_names(
        """pad slice split concatenate rev dynamic_slice dynamic_update_slice reduce_window
        reduce_window_max reduce_window_min reduce_window_sum cumsum cumprod cummax cummin
        custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr optimization_barrier"""
    ),
)
def _same_axes(eqn: Any, inputs: Sequence[Map | None]) -> Map | None:
    shape = eqn.outvars[0].aval.shape
    known = [m for m in inputs if m is not None and len(m.roles) == len(shape)]
    if not known:
        return None
    whole = [m for v, m in zip(eqn.invars, inputs, strict=True) if v.aval.shape == shape]
    return Map(known[0].roles, all(m is not None and m.reduced for m in whole or known))


@_rule("transpose", "squeeze", "reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or")
def _fewer_axes(eqn: Any, inputs: Sequence[Map | None]) -> Map | None:
    (m,), params = inputs, eqn.params
    if m is None:
        return None
    dropped = params.get("axes", params.get("dimensions", ()))
    order = params.get("permutation", [i for i in range(len(m.roles)) if i not in dropped])
    reduced = m.reduced or eqn.primitive.name.startswith("reduce_")
    return m._replace(roles="".join(m.roles[i] for i in order), reduced=reduced)


@_rule("broadcast_in_dim")
def _more_axes(eqn: Any, inputs: Sequence[Map | None]) -> Map | None:
    m, roles = inputs[0], ["c"] * len(eqn.params["shape"])
    if m is None:
        return None
    for axis, role in zip(eqn.params["broadcast_dimensions"], m.roles, strict=True):
        roles[axis] = role
    return m._replace(roles="".join(roles))


@_rule("reshape")
def _reshaped(eqn: Any, inputs: Sequence[Map | None]) -> Map | None:
    m = inputs[0]
    if m is None or eqn.params["dimensions"] is not None:
        return None
    found = reshaped(m.roles, eqn.invars[0].aval.shape, eqn.params["new_sizes"])
    return found and m._replace(roles=found[0])


@_rule("dot_general")
def _product(eqn: Any, inputs: Sequence[Map | None]) -> Map | None:
    """A linear layer over the channels of a map."""
    (contracted, batch), which = eqn.params["dimension_numbers"], int(inputs[0] is None)
    m = inputs[which]
    if m is None or inputs[1 - which] is not None:
        return None
    if any(m.roles[i] == "s" for i in contracted[which]):
        return None
    used = {*contracted[which], *batch[which]}
    free = "".join(role for i, role in enumerate(m.roles) if i not in used)
    first = "".join(m.roles[i] for i in batch[which])
    others = "c" * (len(eqn.outvars[0].aval.shape) - len(first) - len(free))
    return Map(first + (others + free if which else free + others))
