"""Rules for programs inside programs: calls, loops, branches, rematerialization, derivative rules.

A map whose stride waits enters and leaves a call. Loops and branches are traced again, so only
arrays of the original's shapes enter and leave them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax import lax
from jaxtyping import Array

from aa_flax.transform.activations import begin, begun, is_fine, joined, leave, map_in
from aa_flax.transform.axes import activations_in
from aa_flax.transform.decisions import Refused
from aa_flax.transform.interpreter import Interpreter, rule
from aa_flax.transform.jaxpr import bind, called, opened
from aa_flax.transform.values import Pending, Value, bare, wrapped


def _function(inner: Interpreter, program: Any) -> Callable[..., list[Array]]:
    """Returns the antialiased program as a function of arrays, for JAX to trace."""
    jaxpr, consts = opened(program)
    return lambda *arrays: inner.run_settled(jaxpr, consts, arrays)


@rule("jit", "pjit", "closed_call", "core_call")
def inlined(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A call (of `jax.jit`, say): inlined where it subsamples, or reads a map that waits."""
    program = called(eqn)
    if not (run.enters(program) or any(map(run.map_of, inputs))):
        return None
    given, results = (eqn.params.get(f"{side}_shardings", ()) for side in ("in", "out"))
    if not any(isinstance(s, jax.sharding.Sharding) for s in (*given, *results)):
        return run.inside(eqn, same_scope=True).run(*opened(program), inputs)
    # Shardings belong to the arrays of the original's shapes, so the call stays a call.
    call = _function(run.inside(eqn), program)
    call = jax.jit(call, in_shardings=given, out_shardings=list(results))
    return call(*(run.settle(v, eqn) for v in inputs))


@rule("checkpoint", "remat", "remat2")
def rematerialized(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value]:
    """`jax.checkpoint`: the same values; what runs inside is computed again for the gradient."""
    jaxpr, consts = opened(eqn.params["jaxpr"])
    inner = run.inside(eqn)
    given = [_across(run, v, eqn) for v in inputs]
    found: list[Value] = []

    def call(arrays: list[Any]) -> list[Any]:
        outputs = inner.run(jaxpr, consts, list(map(wrapped, given, arrays)))
        found[:] = [_across(inner, v, None) for v in outputs]
        return list(map(bare, found))

    call = jax.checkpoint(call, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"])
    outputs = call(list(map(bare, given)))  # fills `found`
    return list(map(wrapped, found, outputs))


def _across(run: Interpreter, value: Value, eqn: Any) -> Value:
    """Settles a value that may not enter or leave a trace: a pool's decision belongs to one."""
    decides = isinstance(value, Pending) and value.sample.decides
    return run.settle(value, eqn) if decides else value


@rule("scan")
def scan(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`lax.scan`: its body is antialiased; the carry has the original's shapes."""
    params = eqn.params
    if not run.enters(params["jaxpr"]):
        return None
    settled = [run.settle(v, eqn) for v in inputs]
    first, carried = _constants_and_carry(eqn, params["jaxpr"])
    step = _function(run.inside(eqn, params["length"]), params["jaxpr"])

    def body(carry: list[Array], xs: list[Array]) -> tuple[list[Array], list[Array]]:
        outputs = step(*settled[:first], *carry, *xs)
        return outputs[:carried], outputs[carried:]

    carry, xs = settled[first : first + carried], settled[first + carried :]
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = lax.scan(body, carry, xs, **options)
    return [*carry, *stacked]


def _constants_and_carry(eqn: Any, program: Any) -> tuple[int, int]:
    """Returns how many operands every step of a scan sees, and how many it carries.

    Inferred from shapes, since versions of JAX name these parameters differently: what is scanned
    or stacked has one axis more outside than inside.
    """
    jaxpr, _ = opened(program)
    carried, rest = (
        sum(out.aval.ndim == within.aval.ndim for out, within in zip(*pair, strict=True))
        for pair in ((eqn.outvars, jaxpr.outvars), (eqn.invars, jaxpr.invars))
    )
    return rest - carried, carried


@rule("while")
def while_loop(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`lax.while_loop`: condition and body are antialiased."""
    test, step = (eqn.params[name] for name in ("cond_jaxpr", "body_jaxpr"))
    if not run.enters(test, step):
        return None
    settled = [run.settle(v, eqn) for v in inputs]
    n, m = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    condition, body = (_function(run.inside(eqn), program) for program in (test, step))
    return lax.while_loop(
        lambda carry: condition(*settled[:n], *carry)[0],
        lambda carry: body(*settled[n : n + m], *carry),
        settled[n + m :],
    )


@rule("cond")
def cond(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`lax.cond` and `lax.switch`: every branch is antialiased."""
    if not run.enters(*eqn.params["branches"]):
        return None
    index, *operands = (run.settle(v, eqn) for v in inputs)
    branches = [_function(run.inside(eqn), branch) for branch in eqn.params["branches"]]
    return lax.switch(index.astype("int32"), branches, *operands)


@rule("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
def custom_rule(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A function with a derivative rule, which it keeps unless something inside changes.

    Where something does, JAX's own derivative replaces the rule. A pending map passes a function
    that treats all positions alike (`jax.nn.relu`, `jnp.logaddexp`).
    """
    jaxpr, consts = opened(called(eqn))
    inner = run.inside(eqn, same_scope=True)
    if run.enters(jaxpr):
        return inner.run(jaxpr, consts, inputs)
    given, outputs, key = _on_finer_grid(run, eqn, jaxpr, consts, inputs)
    if outputs is None:
        given, outputs = inputs, _pointwise_outputs(inner, jaxpr, consts, inputs)
    if outputs is None:
        return None
    # The rule was written for arrays of the original's shape, so the function is vectorized over
    # the phases of the dense map, each of which has that shape.
    call = partial(bind, eqn)
    for k in range(len(outputs[0].strided)):
        axes = [v.strided[k] + k + 1 if isinstance(v, Pending) else None for v in given]
        out_axes = [v.strided[k] + k + 1 for v in outputs]
        # One vmap for each strided axis; the k axes of phases in front of it are still there.
        call = jax.vmap(call, in_axes=(axes,), out_axes=out_axes)
    found = call([v.phases() if isinstance(v, Pending) else run.settle(v, eqn) for v in given])
    results = [template.of_phases(y) for template, y in zip(outputs, found, strict=True)]
    return results if key is None else begun(results, key)


def _on_finer_grid(
    run: Interpreter, eqn: Any, jaxpr: Any, consts: Sequence[Any], inputs: list[Value]
) -> tuple[list[Value], list[Pending] | None, Any]:
    """Returns operands, abstract outputs and the key of a function that is an activation.

    Of any other, the outputs are None.
    """
    if run.options.activations is None or not any(map_in(run, v) for v in inputs):
        return inputs, None, None
    try:
        given = joined(run, eqn, inputs, curved=True)
    except Refused as refusal:
        leave(run, eqn, inputs, str(refusal))
        return inputs, None, None
    outputs = _pointwise_outputs(run.inside(eqn, same_scope=True), jaxpr, consts, given)
    if outputs is None or not all(v.activated for v in outputs):
        if next(activations_in(eqn), None) is not None:
            leave(run, eqn, inputs, "it combines positions")
        return inputs, None, None
    if any(map(is_fine, inputs)):
        return given, outputs, None
    key = begin(run, eqn, inputs)
    return given, outputs if key else None, key


def _pointwise_outputs(
    inner: Interpreter, jaxpr: Any, consts: Sequence[Any], inputs: list[Value]
) -> list[Pending] | None:
    """Returns abstract outputs of a program that treats all positions alike, or None."""
    if not any(isinstance(v, Pending) for v in inputs):
        return None
    found: list[Value] = []
    fresh = {"unactivated": set(), "activated": set(), "maps": {}, "lifts": {}, "begun": {}}
    trial = replace(inner, rows=dict(inner.rows), counted=set(), alike=True, **fresh)

    def run(arrays: list[Any]) -> None:
        found[:] = trial.run(jaxpr, consts, list(map(wrapped, inputs, arrays)))

    try:
        jax.eval_shape(run, list(map(bare, inputs)))
    except Refused:
        return None
    pending = [v for v in (*inputs, *found) if isinstance(v, Pending)]
    alike = all(v.waiting == pending[0].waiting for v in pending)
    return found if alike and all(isinstance(v, Pending) for v in found) else None


@rule("aa_flax_kernel")
def kernel(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """An operation of `aa_flax.ops` that was traced as a kernel: replaced by its definition."""
    definition = eqn.params["form"].definitions[eqn.params["slot"]]
    settled = [run.settle(v, eqn) for v in inputs]
    traced = jax.make_jaxpr(definition)(*settled)
    run.kept.append(traced)
    return run.inside(eqn, same_scope=True).run(*opened(traced), settled)
