"""Runs a traced program with its subsampling antialiased: an interpreter of JAX's jaxprs."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.extend.core import Literal

from aa_flax.transform import calls, pointwise, subsampling
from aa_flax.transform.names import layer_name
from aa_flax.transform.options import Options
from aa_flax.transform.places import Place, bind, describe, places_in
from aa_flax.transform.report import Report, Row
from aa_flax.transform.values import Pending, Phase, Spread, Value


@dataclass
class Interpreter:
    """One run of a program, or of one inside it, by `options`.

    Args:
        options: those of `antialias`.
        rows: the report as it grows, by a key for each place: the equations on the way to it.
        path: the calls that led here.
        repeats: how often this program runs in one call of the function.
        names: of arrays that are parameters, by identity, with the arrays.
        phases: of the pools that sample maps computed from one input, by that input.
        splits: arrays that a reshape has split, by identity of its result, with that.
        kept: programs whose equations the keys name by identity.
        deciding: what pools decided that decide anything.
        alone: rows of equations that are left alone for what their constants are.
        alike: whether a pending map passes only what needs one position at a time.
        jaxpr, sliced: the program that runs, and the phases that its slices keep.
    """

    options: Options
    rows: dict[Any, Row] = field(default_factory=dict)
    path: tuple[Any, ...] = ()
    repeats: int = 1
    names: dict[int, tuple[Any, str]] = field(default_factory=dict)
    phases: dict[Any, tuple[Any, Phase]] = field(default_factory=dict)
    splits: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    deciding: list[Phase] = field(default_factory=list)
    alone: dict[int, Row] = field(default_factory=dict)
    alike: bool = False
    jaxpr: Any = None
    sliced: dict[Any, set[tuple[int, ...]]] = field(default_factory=dict)

    def inside(self, eqn: Any, repeats: int = 1, *, same_scope: bool = False) -> "Interpreter":
        """The interpreter of a program that an equation calls; another scope has other arrays."""
        fresh = {} if same_scope else {"names": {}, "phases": {}, "splits": {}}
        path = (*self.path, id(eqn))
        return replace(self, path=path, repeats=self.repeats * repeats, **fresh)

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a program; some may be pending."""
        known: dict[Any, Value] = {}
        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))
        self.jaxpr, self.sliced = jaxpr, subsampling.phases_sliced(jaxpr)
        for eqn in jaxpr.eqns:
            values = [v.val if isinstance(v, Literal) else known[v] for v in eqn.invars]
            known.update(zip(eqn.outvars, self._equation(eqn, values), strict=True))
        return [v.val if isinstance(v, Literal) else known[v] for v in jaxpr.outvars]

    def run_settled(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a program, all of them arrays of the original's shapes."""
        return [self.settle(v, None) for v in self.run(jaxpr, consts, inputs)]

    def _equation(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        name, scope = eqn.primitive.name, str(eqn.source_info.name_stack)
        if id(eqn) in self.alone:
            self.rows[self.key(eqn)] = self.alone[id(eqn)]
        with jax.named_scope(scope) if scope else nullcontext():
            outputs = None
            for rules in (subsampling.RULES, calls.RULES, pointwise.RULES):
                if outputs is None and name in rules:
                    outputs = rules[name](self, eqn, inputs)
            if outputs is None:
                self._leave_inside_alone(eqn)
                outputs = self.bind(eqn, [self.settle(v, eqn) for v in inputs])
            self._carry_name(eqn, inputs, outputs)
        return outputs

    bind = staticmethod(bind)

    def settle(self, value: Value, eqn: Any) -> Any:
        """The array that a value stands for, before an equation needs it (None: as an output)."""
        if isinstance(value, Spread):
            return value.full()
        if not isinstance(value, Pending):
            return value
        if not value.activated:
            where = "the end" if eqn is None else eqn.primitive.name
            self._note(value.places, f"no nonlinearity before {where}")
        return value.sampled()

    def _note(self, keys: frozenset[Any], reason: str) -> None:
        for key in keys:
            if not self.rows[key].reason:
                self.rows[key] = replace(self.rows[key], reason=reason)

    def key(self, eqn: Any) -> Any:
        """What tells a place of the program from all others."""
        return (*self.path, id(eqn))

    def layer(self, eqn: Any, inputs: Sequence[Value]) -> str:
        """A name of the layer that an equation belongs to."""
        parameters = [self.names[id(v)][1] for v in inputs[1:] if id(v) in self.names]
        return layer_name(eqn, parameters)

    def record(
        self, eqn: Any, place: Place, *, done: str = "", reason: str = "", extra: float = 0
    ) -> None:
        """A line of the report."""
        self.rows[self.key(eqn)] = Row(place, done, reason, round(extra * self.repeats))

    def shared_phase(self, source: Any, eqn: Any, strides: Sequence[int]) -> Phase:
        """The decisions of pools on maps that come from one array, such as a block's input."""
        key = (id(source), tuple(strides))
        phase = self.phases.setdefault(key, (source, Phase()))[1]
        phase.places.append(self.key(eqn))
        self.deciding.append(phase)
        return phase

    def report(self) -> Report:
        """Every place so far; last, those in programs that were not looked into."""
        seen = {key[-1] for key in self.rows}
        unseen = (row for key, row in self.alone.items() if key not in seen)
        alone = {phase.places[0] for phase in self.deciding if len(set(phase.places)) == 1}
        reason = "its pool decides by itself: no other place has the same input"
        rows = (
            replace(row, reason=reason) if key in alone and not row.reason else row
            for key, row in self.rows.items()
        )
        return Report((*rows, *unseen))

    def _carry_name(self, eqn: Any, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
        """A parameter that was cast or turned is still that parameter."""
        if eqn.primitive.name in ("convert_element_type", "transpose", "reshape", "copy"):
            named = self.names.get(id(inputs[0]))
            if named is not None:
                self.names[id(outputs[0])] = (outputs[0], named[1])

    def _leave_inside_alone(self, eqn: Any) -> None:
        """Says of each place inside an equation that it is not looked into."""
        inner = [j for j in eqn.params.values() if hasattr(j, "eqns") or hasattr(j, "jaxpr")]
        for jaxpr in inner:
            for found in places_in(getattr(jaxpr, "jaxpr", jaxpr)):
                place = describe(found, layer_name(found, []))
                if place is not None:
                    reason = f"inside {eqn.primitive.name}, which is not looked into"
                    self.inside(eqn).record(found, place, reason=reason)
