"""Programs inside programs: calls, loops, branches, rematerialisation, derivative rules."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax import lax
from jaxtyping import Array

from aa_flax.transform.places import has_places, opened
from aa_flax.transform.pointwise import Rule
from aa_flax.transform.values import Pending, Value

if TYPE_CHECKING:
    from aa_flax.transform.interpreter import Interpreter


def inlined(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A call (of `jax.jit`, say): looked into where it subsamples, or gets a map that waits."""
    jaxpr, consts = opened(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
    if not (has_places(jaxpr) or any(isinstance(v, Pending) for v in inputs)):
        return None
    shardings = (eqn.params.get("in_shardings", ()), eqn.params.get("out_shardings", ()))
    if not any(_is_specified(s) for both in shardings for s in both):
        return run.inside(eqn, same_scope=True).run(jaxpr, consts, inputs)
    inner = run.inside(eqn)
    call = jax.jit(
        lambda *arrays: inner.run_settled(jaxpr, consts, arrays),
        in_shardings=shardings[0],
        out_shardings=list(shardings[1]),
    )
    return call(*(run.settle(v, eqn) for v in inputs))


def _is_specified(sharding: Any) -> bool:
    return isinstance(sharding, jax.sharding.Sharding)


def rematerialised(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`jax.checkpoint`: what is antialiased inside is computed again in the backward pass, too."""
    jaxpr, consts = opened(eqn.params["jaxpr"])
    if not has_places(jaxpr):
        return None
    inner = run.inside(eqn)
    call = jax.checkpoint(
        lambda *arrays: inner.run_settled(jaxpr, consts, arrays),
        policy=eqn.params["policy"],
        prevent_cse=eqn.params["prevent_cse"],
    )
    return call(*(run.settle(v, eqn) for v in inputs))


def scan(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`lax.scan`: its body antialiased; what it carries has the original's shapes."""
    params = eqn.params
    jaxpr, consts = opened(params["jaxpr"])
    if not has_places(jaxpr):
        return None
    settled = [run.settle(v, eqn) for v in inputs]
    first, carried = _constants_and_carry(eqn, jaxpr)
    inner = run.inside(eqn, params["length"])

    def body(carry: list[Array], xs: list[Array]) -> tuple[list[Array], list[Array]]:
        outputs = inner.run_settled(jaxpr, consts, [*settled[:first], *carry, *xs])
        return outputs[:carried], outputs[carried:]

    carry, stacked = lax.scan(
        body,
        settled[first : first + carried],
        settled[first + carried :],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *stacked]


def _constants_and_carry(eqn: Any, jaxpr: Any) -> tuple[int, int]:
    """How many operands of a scan every step sees, and how many it carries.

    From the shapes, since versions of JAX say it differently: what is scanned or stacked has an
    axis more outside than inside.
    """
    carried, rest = (
        sum(out.aval.ndim == within.aval.ndim for out, within in zip(*pair, strict=True))
        for pair in ((eqn.outvars, jaxpr.outvars), (eqn.invars, jaxpr.invars))
    )
    return rest - carried, carried


def while_loop(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`lax.while_loop`: condition and body antialiased."""
    params = eqn.params
    (test, test_consts), (step, step_consts) = (
        opened(params[name]) for name in ("cond_jaxpr", "body_jaxpr")
    )
    if not (has_places(test) or has_places(step)):
        return None
    settled = [run.settle(v, eqn) for v in inputs]
    n, m = params["cond_nconsts"], params["body_nconsts"]
    inner = run.inside(eqn)
    return lax.while_loop(
        lambda carry: inner.run_settled(test, test_consts, [*settled[:n], *carry])[0],
        lambda carry: inner.run_settled(step, step_consts, [*settled[n : n + m], *carry]),
        settled[n + m :],
    )


def cond(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`lax.cond` and `lax.switch`: every branch antialiased."""
    branches = [opened(branch) for branch in eqn.params["branches"]]
    if not any(has_places(jaxpr) for jaxpr, _ in branches):
        return None
    index, *operands = (run.settle(v, eqn) for v in inputs)
    inner = run.inside(eqn)

    def branch(jaxpr: Any, consts: Sequence[Any]) -> Callable[..., list[Array]]:
        return lambda *arrays: inner.run_settled(jaxpr, consts, arrays)

    return lax.switch(index.astype("int32"), [branch(*b) for b in branches], *operands)


def custom_jvp(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A function with a forward rule of its own, which it keeps unless something inside changes.

    Of a map that waits, function and rule are run densely if both treat all positions alike (as
    those of `jax.nn.relu` do).
    """
    jaxpr, consts = opened(eqn.params["call_jaxpr"])
    inner = run.inside(eqn, same_scope=True)
    if has_places(jaxpr):
        return inner.run(jaxpr, consts, inputs)
    waiting = [i for i, v in enumerate(inputs) if isinstance(v, Pending)]
    if len(waiting) != 1 or eqn.params["num_consts"] or len(inputs) != 1:
        return None
    (value,) = inputs
    like = _dense_outputs(inner, jaxpr, consts, value)
    if like is None:
        return None

    @jax.custom_jvp
    def function(dense: Array) -> list[Array]:
        return [v.dense for v in inner.run(jaxpr, consts, [value.with_dense(dense)])]

    @function.defjvp
    def rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[list[Array], list[Array]]:
        rule_jaxpr, rule_consts, zeros = eqn.params["jvp_jaxpr_fun"].call_wrapped(False)
        given = [value.with_dense(array) for array in (*primals, *tangents)]
        outputs = inner.run(rule_jaxpr, rule_consts, given)
        dense = [v.dense if isinstance(v, Pending) else v for v in outputs]
        results, nonzero = dense[: len(zeros)], iter(dense[len(zeros) :])
        return results, [
            jax.numpy.zeros_like(result) if zero else _like(next(nonzero), result)
            for result, zero in zip(results, zeros, strict=True)
        ]

    return [
        template.with_dense(dense)
        for template, dense in zip(like, function(value.dense), strict=True)
    ]


def _like(tangent: Any, result: Array) -> Array:
    """A tangent as an array of its result's shape; one that never depended on it was not dense."""
    full = (
        tangent.to(result.shape) if hasattr(tangent, "to") and hasattr(tangent, "full") else tangent
    )
    return jax.numpy.broadcast_to(full, result.shape)


def _dense_outputs(
    inner: "Interpreter", jaxpr: Any, consts: Sequence[Any], value: Pending
) -> list[Pending] | None:
    """What a program makes of a map that waits, if all of it waits, too; None: it does not."""
    found: list[Value] = []

    def trial(dense: Array) -> Array:
        found[:] = inner.run(jaxpr, consts, [value.with_dense(dense)])
        return dense

    jax.eval_shape(trial, value.dense)
    waits = all(isinstance(v, Pending) and v.shape == value.shape for v in found)
    return found if waits else None


def custom_vjp(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A function with a backward rule of its own, which holds for the original alone.

    Where something inside changes, JAX's own derivative takes the rule's place.
    """
    name = next(n for n in ("call_jaxpr", "fun_jaxpr") if n in eqn.params)
    jaxpr, consts = opened(eqn.params[name])
    if not has_places(jaxpr):
        return None
    return run.inside(eqn, same_scope=True).run(jaxpr, consts, inputs)


def form(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """This package's own operation, where a program was traced without `ops.definitions`."""
    definition = eqn.params["form"].definitions[eqn.params["slot"]]
    settled = [run.settle(v, eqn) for v in inputs]
    traced = jax.make_jaxpr(definition)(*settled)
    run.kept.append(traced)
    return run.inside(eqn, same_scope=True).run(*opened(traced), settled)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call"), inlined),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), rematerialised),
    "scan": scan,
    "while": while_loop,
    "cond": cond,
    "custom_jvp_call": custom_jvp,
    **dict.fromkeys(("custom_vjp_call", "custom_vjp_call_jaxpr"), custom_vjp),
    "aa_flax_form": form,
}
