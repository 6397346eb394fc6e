"""Runs a traced program with its subsampling antialiased.

Each operation runs by its rule: those of `convolutions` and `windows` replace what subsamples,
those of `pointwise` carry maps whose stride waits, those of `calls` enter programs inside. An
operation without a rule runs as it is, on maps that are subsampled before it.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aa_flax.transform.aliasing import Aliasing
from aa_flax.transform.axes import Map, activations_in, has_convolutions, map_after
from aa_flax.transform.decisions import Options, Phase, Refused, Sampler
from aa_flax.transform.jaxpr import Rules, bind, called, evaluate, sub_jaxprs
from aa_flax.transform.profile import Contributions
from aa_flax.transform.sites import (
    Report,
    Row,
    Site,
    describe,
    has_sites,
    layer_name,
    site_of,
    sites_in,
)
from aa_flax.transform.values import Pending, Spread, Value, channels_last_shape, on_channels_last

# A rule maps the interpreter, an equation and its operands to the results, or to None.
rule = Rules()


class Tracked(NamedTuple):
    """A value whose spatial axes are known, and the equation that computes it."""

    value: Value
    map: Map
    eqn: Any
    inputs: Sequence[Value]


@dataclass(eq=False)
class Origin:
    """The interpolation of a map to the finer grid of activations."""

    flops: float


@dataclass
class Interpreter:
    """One run of a program, or of one inside it."""

    options: Options
    # The report as it grows, by `key`: the calls on the way to a site's equation, and that.
    rows: dict[Any, Row] = field(default_factory=dict)
    path: tuple[Any, ...] = ()  # the calls that led here
    caller: str = "unknown"  # the layer of the last of them
    repeats: int = 1  # of this program in one call of the function
    # Identities of arrays are safe as keys only while the array lives, so it is stored with them.
    names: dict[int, tuple[Any, str]] = field(default_factory=dict)  # of parameters
    phases: dict[Any, tuple[Any, Phase]] = field(default_factory=dict)  # by the maps' source
    splits: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # what a reshape has split
    maps: dict[int, Tracked] = field(default_factory=dict)  # whose spatial axes are known
    # Maps on the finer grid by the original; activations there, some unused; what was counted.
    lifts: dict[int, tuple[Value, Pending]] = field(default_factory=dict)
    begun: dict[Any, Row] = field(default_factory=dict)
    counted: set[Any] = field(default_factory=set)
    kept: list[Any] = field(default_factory=list)  # programs whose equations are keys, likewise
    deciding: list[Phase] = field(default_factory=list)  # of pools that choose a grid
    alone: dict[int, Row] = field(default_factory=dict)  # left alone because of their constants
    linear: frozenset[Any] = frozenset()  # keys of sites that no nonlinearity follows
    # Keys of sites whose maps were read before, or after, a nonlinearity.
    unactivated: set[Any] = field(default_factory=set)
    activated: set[Any] = field(default_factory=set)
    alike: bool = False  # a pending map passes only what needs one position at a time
    # Where maps are measured before they are subsampled.
    aliasing: Aliasing | Contributions | None = None
    jaxpr: Any = None  # the program that runs

    def inside(self, eqn: Any, repeats: int = 1, *, same_scope: bool = False) -> "Interpreter":
        """Returns the interpreter of a program that an equation calls.

        One of the same scope sees the same arrays; a program that is traced again does not.
        """
        tables = () if same_scope else ("names", "phases", "splits", "maps", "lifts")
        fresh: dict[str, Any] = {name: {} for name in tables}
        fresh["caller"] = self.layer(eqn, [])
        return replace(self, path=self.key(eqn), repeats=self.repeats * repeats, **fresh)

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Returns the outputs of a program; some may be pending."""
        self.jaxpr = jaxpr
        return evaluate(jaxpr, consts, inputs, self._run_equation)

    def run_settled(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Returns the outputs of a program as arrays of the original's shapes."""
        return [self.settle(v, None) for v in self.run(jaxpr, consts, inputs)]

    def _run_equation(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        name, scope = eqn.primitive.name, str(eqn.source_info.name_stack)
        if id(eqn) in self.alone:
            self.rows[self.key(eqn)] = self.alone[id(eqn)]
        with jax.named_scope(scope) if scope else nullcontext():
            outputs = rule.apply(name, self, eqn, inputs)
            if outputs is None:
                self._leave_inside_alone(eqn, inputs)
                outputs = bind(eqn, [self.settle(v, eqn) for v in inputs])
        # A parameter that was cast or transposed is still that parameter.
        is_moved = name in ("convert_element_type", "transpose", "reshape", "copy")
        if is_moved and (named := self.names.get(id(inputs[0]))) is not None:
            self.names[id(outputs[0])] = (outputs[0], named[1])
        if self.options.activations:
            self._track(eqn, inputs, outputs)
        return outputs

    def _track(self, eqn: Any, inputs: list[Value], outputs: list[Value]) -> None:
        """Notes which axes of the results are spatial, where the operands show it."""
        repeated = Map("", reduced=True)  # constants of a map leave a statistic one
        known = [repeated if isinstance(v, Spread) else self.map_of(v) for v in inputs]
        m = map_after(eqn, known)
        if m is None and inputs and id(inputs[0]) in self.splits:  # a pool by reshape
            m = self.map_of(self.splits[id(inputs[0])][1])
        if m is None:
            return
        for out in outputs:
            is_value = isinstance(out, Pending) or getattr(out, "ndim", 0) == len(m.roles)
            if is_value and id(out) not in self.maps and not isinstance(out, Spread):
                self.maps[id(out)] = Tracked(out, m, eqn, inputs)

    def map_of(self, value: Value) -> Map | None:
        """Returns facts about a value if its spatial axes are known."""
        if isinstance(value, Pending):
            return Map(value.roles, value.reduced)
        return self.maps[id(value)].map if id(value) in self.maps else None

    def enters(self, *programs: Any) -> bool:
        """Checks whether one of the programs has something to antialias."""
        return has_sites(*programs) or (
            self.options.activations is not None and has_convolutions(*programs)
        )

    def _leave_inside_alone(self, eqn: Any, inputs: list[Value]) -> None:
        reason = f"inside {eqn.primitive.name}, which is not looked into"
        for found in (found for jaxpr, _ in sub_jaxprs(eqn) for found in sites_in(jaxpr)):
            if (site := describe(found, layer_name(found))) is not None:
                self.inside(eqn).record(found, site, reason=reason)
        if not self.options.activations or self.key(eqn) in self.rows:
            return
        if called(eqn) is not None or not any(True for _ in sub_jaxprs(eqn)):
            reason = "no convolution shows its spatial axes"
        for found in activations_in(eqn):
            run = self if found is eqn else self.inside(eqn)
            if run is not self or not any(map(self.map_of, inputs)):
                site = site_of(found, run.layer(found, inputs), "activation", (), ())
                run.record(found, site, reason=reason)

    def settle(self, value: Value, eqn: Any) -> Any:
        """Returns a value as the array that an equation reads (None: as an output)."""
        if isinstance(value, Spread):
            return value.full
        if not isinstance(value, Pending):
            return value
        if self.alike:
            raise Refused("it combines positions")
        if value.plain is not None and not jnp.issubdtype(value.dense.dtype, jnp.floating):
            return self.settle(value.plain, eqn)
        (self.activated if value.activated else self.unactivated).update(value.sites)
        for key in () if value.activated else value.sites:
            reader = "the end" if eqn is None else eqn.primitive.name
            reason = self.rows[key].reason or f"no nonlinearity before {reader}"
            self.rows[key] = replace(self.rows[key], reason=reason)
        if "sampled" not in vars(value):  # measured once, however many read it
            strides = [value.strides[i] for i, role in enumerate(value.roles) if role == "s"]
            sites = value.sites
            if value.origins:
                self._count(value)
                sites = sites - self.begun.keys()
                strides = [stride // value.sample.grid.factor for stride in strides]
            if sites:
                filtered = partial(
                    on_channels_last, value.sample.filtered, value.dense, value.roles
                )
                kept = self.measure(sites, filtered, value.roles, strides)
                if kept is not None:
                    value.sampled = kept
        return value.sampled

    def _count(self, value: Pending) -> None:
        """Reports the activation of a map that is filtered, and its cost; a mask is not filtered.

        What began with several operations is one activation. Interpolation counts for the first
        that uses it.
        """
        key = next((key for key in self.begun if key in value.sites), None)
        if key is None or not jnp.issubdtype(value.dense.dtype, jnp.floating):
            return
        sizes = zip(value.dense.shape, value.roles, strict=True)
        grid = value.sample.grid
        shape = [-(-n // grid.factor) if role == "s" else n for n, role in sizes]
        _, extra = grid.flops(channels_last_shape(shape, value.roles))
        extra += sum(origin.flops for origin in value.origins - self.counted)
        self.counted |= value.origins
        extra = self.begun[key].extra_flops + round(extra * self.repeats)
        self.rows[key] = self.begun[key] = replace(self.begun[key], extra_flops=extra)

    def key(self, eqn: Any) -> Any:
        """Returns the key of a site: one equation may be reached by several calls."""
        return (*self.path, id(eqn))

    def layer(self, eqn: Any, inputs: Sequence[Value]) -> str:
        """Returns a name of the layer that an equation belongs to."""
        parameters = [self.names[id(v)][1] for v in inputs[1:] if id(v) in self.names]
        name = layer_name(eqn, parameters)
        return self.caller if name == "unknown" else name  # in functions of JAX

    def attempt(
        self,
        eqn: Any,
        site: Site,
        antialiased: Callable[[], Value],
        dense: Callable[[], Array],
        roles: str,
    ) -> list[Value] | None:
        """Returns what replaces a site, or None where anything speaks against that.

        `dense` computes the map of which the original program keeps some positions.
        """
        alone = self.alone.get(id(eqn))
        against = self.options.reasons_against(site, eqn, self.jaxpr)
        try:
            if reason := alone.reason if alone else next(against, None):
                raise Refused(reason)
            return [antialiased()]
        except Refused as refusal:
            self.record(eqn, site, reason=str(refusal))
            kept = self.measure([self.key(eqn)], dense, roles, site.strides)
            return None if kept is None or len(eqn.outvars) > 1 else [kept]

    def blurred(
        self, eqn: Any, site: Site, source: Array, dense: Array, roles: str, done: str, extra: float
    ) -> Array:
        """Subsamples a dense map at a site, and records that; see `sampler`."""
        sampler = self.sampler(eqn, site, source, dense.shape, roles)
        self.record(eqn, site, done=done, extra=extra + sampler.flops(site.output_shape))
        filtered = partial(on_channels_last, sampler.filtered, dense, roles)
        kept = self.measure([self.key(eqn)], filtered, roles, site.strides)
        return on_channels_last(sampler, dense, roles) if kept is None else kept

    def measure(
        self, keys: Iterable[Any], dense: Callable[[], Array], roles: str, strides: Sequence[int]
    ) -> Array | None:
        """Measures a map that is subsampled, if this run does; returns what replaces its result."""
        if self.aliasing is None:
            return None
        axes = [axis for axis, role in enumerate(roles) if role == "s"]
        return self.aliasing.add(keys, dense(), dict(zip(axes, strides, strict=True)))

    def sampler(
        self,
        eqn: Any,
        site: Site,
        source: Array,
        shape: Sequence[int],
        roles: str,
        *,
        keeps: bool = False,
    ) -> Sampler:
        """Returns the pool of a site, for maps of a shape and roles of their axes; see `Pending`.

        Pools that sample maps of one `source`, the site's input, share one decision. One that
        `keeps` all pixels only filters.
        """
        output_shape = shape if keeps else site.output_shape
        dense, sampled = (channels_last_shape(n, roles) for n in (shape, output_shape))
        sampler = self.options.sampler(site.strides, dense, sampled, source.dtype, keeps=keeps)
        if sampler.decides:
            # The main branch of a block and its shortcut have to keep the same positions.
            key = (id(source), site.strides)
            _, sampler.phase = self.phases.setdefault(key, (source, Phase()))
            sampler.phase.sites.append(self.key(eqn))
            self.deciding.append(sampler.phase)
        return sampler

    def record(
        self, eqn: Any, site: Site, *, done: str = "", reason: str = "", extra: float = 0
    ) -> None:
        self.rows[self.key(eqn)] = Row(site, done, reason, round(extra * self.repeats))

    def report(self) -> Report:
        """Returns every site so far; last, those in programs that were not looked into."""
        seen = {key[-1] for key in self.rows}
        unseen = (row for key, row in self.alone.items() if key not in seen)
        by_themselves = {p.sites[0] for p in self.deciding if len(set(p.sites)) == 1}
        reason = "its pool chooses its grid by itself: no other site has the same input"
        notes = dict.fromkeys(by_themselves, reason)
        notes |= {
            key: f"it hardly filters: {weak}"
            for key, row in self.rows.items()
            if row.done and (weak := self.options.weakness(row.site.strides))
        }
        rows = (
            replace(row, reason="; ".join(filter(None, (row.reason, notes.get(key)))))
            for key, row in self.rows.items()
        )
        return Report((*rows, *unseen))
