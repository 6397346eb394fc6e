"""Programs as JAX traces them (jaxprs): what they contain, and running them equation by equation.

Every walk over a program in this package goes through here: `antialias`, `export` and `fuse`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from jax.extend.core import Literal

_F = TypeVar("_F", bound=Callable[..., Any])

# Operations that run one program once, whose values do not depend on how it is called.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
_CALLS += ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


class Rules:
    """Functions by name of primitive, registered by decorator: `@rules("slice", "pad")`."""

    def __init__(self):
        self._rules: dict[str, list[Callable[..., Any]]] = defaultdict(list)

    def __call__(self, *primitives: str) -> Callable[[_F], _F]:
        def register(rule: _F) -> _F:
            for primitive in primitives:
                self._rules[primitive].append(rule)
            return rule

        return register

    def apply(self, primitive: str, *arguments: Any) -> Any:
        """Returns the first result of the primitive's rules that is not None, or else None."""
        results = (rule(*arguments) for rule in self._rules.get(primitive, ()))
        return next((result for result in results if result is not None), None)


def evaluate(
    jaxpr: Any,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    run_equation: Callable[[Any, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Runs a program on values of any kind, by a function that runs an equation on its operands."""
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for eqn in jaxpr.eqns:
        outputs = run_equation(eqn, [read(v) for v in eqn.invars])
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def bind(eqn: Any, operands: Sequence[Any], **changes: Any) -> list[Any]:
    """Applies the operation of an equation to other operands or with some parameters changed."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changes})
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*operands, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def opened(jaxpr: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns a program and its constants, whether it is closed or open."""
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ()))


def sub_jaxprs(eqn: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yields the programs that an equation calls, each with its constants."""
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            program, consts = opened(inner)
            if hasattr(program, "eqns"):
                yield program, consts


def called(eqn: Any) -> Any:
    """Returns the program of an equation that only calls one, or None for any other equation."""
    if eqn.primitive.name not in _CALLS:
        return None
    return next(eqn.params[n] for n in ("jaxpr", "call_jaxpr", "fun_jaxpr") if n in eqn.params)


def programs(jaxpr: Any) -> Iterator[Any]:
    """Yields a program and all that it calls."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner, _ in sub_jaxprs(eqn):
            yield from programs(inner)


def eqns_in(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a program and of all that it calls."""
    return (eqn for program in programs(jaxpr) for eqn in program.eqns)


def producers(jaxpr: Any) -> dict[Any, Any]:
    """Returns the equation that computes each variable of a program."""
    return {variable: eqn for eqn in jaxpr.eqns for variable in eqn.outvars}
