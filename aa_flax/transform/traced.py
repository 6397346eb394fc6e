"""A function's program at certain arguments, which `antialias` runs."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from math import nan
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.errors import InconclusiveDimensionOperation
from jax.extend.core import jaxpr_as_fun

from aa_flax.errors import InputError
from aa_flax.ops import definitions

# Their rules. `pointwise` is before `windows`: a reshape that a waiting stride passes is no pool.
from aa_flax.transform import calls, convolutions, pointwise, windows  # noqa: F401
from aa_flax.transform.aliasing import Aliasing
from aa_flax.transform.constants import left_alone
from aa_flax.transform.decisions import Options, Place
from aa_flax.transform.interpreter import Interpreter
from aa_flax.transform.jaxpr import eqns_in, opened
from aa_flax.transform.profile import (
    Contributions,
    Images,
    Profile,
    ProfileRow,
    added_milliseconds,
    lie_shares,
)
from aa_flax.transform.sites import Site


class Traced:
    """A function's program at certain arguments."""

    def __init__(self, f: Callable[..., Any], args: Any, kwargs: Any):
        with_paths, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
        leaves = [leaf for _, leaf in with_paths]
        self._result: Any = None  # leaves and structure of the function's result

        def flat(*arrays: Any) -> list[Any]:
            args, kwargs = tree.unflatten(_filled(leaves, arrays))
            self._result = jax.tree.flatten(f(*args, **kwargs))
            return list(filter(_is_array, self._result[0]))

        self.arrays = list(filter(_is_array, leaves))
        self._names = [_path(path) for path, leaf in with_paths if _is_array(leaf)]
        own, _ = jax.tree_util.tree_flatten_with_path(inspect.unwrap(f))  # arrays of a model
        self._closed_over = {id(x): (x, _joined(path)) for path, x in own if _is_array(x)}
        # Definitions are operations of JAX, by which sites are found; kernels hide their strides.
        with definitions():
            self._program = jax.make_jaxpr(flat)(*self.arrays)
        _check_no_gradients(self._program.jaxpr)

    @property
    def outputs(self) -> Sequence[Any]:
        """The shapes and types of the function's arrays."""
        return self._program.out_avals

    def interpreter(self, options: Options) -> Interpreter:
        """Returns the interpreter of a run, which knows the sites that no nonlinearity follows."""
        first = Interpreter(options)
        if options.before is None and options.pool is None:
            jax.eval_shape(lambda arrays: self.run(first, arrays), self.arrays)
        return Interpreter(options, linear=frozenset(first.unactivated - first.activated))

    def run(self, run: Interpreter, arrays: list[Any]) -> list[Any]:
        named = zip(arrays, self._names, strict=True)
        run.names |= self._closed_over | {id(array): (array, name) for array, name in named}
        jaxpr, consts = opened(self._program)
        try:
            run.alone |= left_alone(jaxpr, consts)
            return run.run_settled(jaxpr, consts, arrays)
        except InconclusiveDimensionOperation as error:
            raise InputError(
                f"antialias cannot leave these sizes open: {str(error).splitlines()[0]} Give them "
                "numbers, or constraints that decide it (h >= 8)"
            ) from error

    def check_numbers(self, caller: str) -> None:
        """Raises an InputError if the arguments are shapes, or traced arrays."""
        for array in self.arrays:
            if isinstance(array, Tracer | jax.ShapeDtypeStruct):
                raise InputError(
                    f"{caller} runs the function on numbers, got only the shape {array.shape}: "
                    "give arrays, outside of jax.jit and other transformations"
                )

    def profile(
        self,
        options: Options,
        *,
        as_it_is: bool,
        times: Mapping[Site, float] = MappingProxyType({}),
        images: Images | None = None,
    ) -> Profile:
        """Measures the function, antialiased with those options or as it is."""
        run = measured = self.interpreter(options)
        if as_it_is:
            jax.eval_shape(lambda arrays: self.run(run, arrays), self.arrays)
            measured = self.interpreter(replace(options, where=lambda site: False))
        measured.aliasing = aliasing = Aliasing()
        jax.block_until_ready(jax.jit(lambda x: self.run(measured, x))(self.arrays))
        jax.effects_barrier()
        report, shares = run.report(), {}
        if images:

            def moved(contributions: Contributions, arrays: list[Any]) -> list[Any]:
                return self.run(replace(measured, aliasing=contributions), arrays)

            shares = lie_shares(moved, self.arrays, images, list(run.rows))
        rows = []
        for key, row in zip_longest(run.rows, report):  # last, those that were not looked into
            if not aliasing.is_finite(key):
                raise InputError(
                    f"the map at {row.site.layer} is not finite, so its aliasing cannot be "
                    "measured; check the weights and the images"
                )
            energy, damage = aliasing.ratios(key)
            measured_row = ProfileRow(
                **vars(row),
                aliasing_energy=energy,
                damage=damage,
                extra_milliseconds=times.get(row.site, nan) if row.done else nan,
                lie_share=shares.get(key, nan),
            )
            rows.append(measured_row)
        return Profile(tuple(rows))

    def added_milliseconds(self, options: Options) -> dict[Site, float]:
        """Times the filter of each site alone; of equal sites, which run together, their mean."""
        run = self.interpreter(options)
        jax.eval_shape(lambda arrays: self.run(run, arrays), self.arrays)
        sites = Counter(row.site for row in run.report().antialiased)

        def only(site: Site | None) -> Callable[[list[Any]], list[Any]]:
            def where(other: Site) -> bool | Place:
                asked = True if options.where is None else options.where(other)
                return asked if other == site else False

            return lambda arrays: self.run(self.interpreter(replace(options, where=where)), arrays)

        found = added_milliseconds(only(None), {site: only(site) for site in sites}, self.arrays)
        return {site: ms / sites[site] for site, ms in found.items()}

    def flops(self) -> float:
        """Returns the FLOPs of the function's program."""
        costs = jax.jit(jaxpr_as_fun(self._program)).lower(*self.arrays).cost_analysis()
        if costs is None:
            raise InputError(
                "a budget is a fraction of the function's FLOPs, which JAX does not count on "
                f"{jax.default_backend()}; choose sites by where= instead"
            )
        return dict(costs).get("flops", 0.0)  # none in a function that only moves values

    def result(self, arrays: list[Any]) -> Any:
        """Returns the function's result, with those arrays in it."""
        leaves, tree = self._result
        return tree.unflatten(_filled(leaves, arrays))


def _filled(leaves: Iterable[Any], arrays: Iterable[Any]) -> list[Any]:
    remaining = iter(arrays)
    return [next(remaining) if _is_array(leaf) else leaf for leaf in leaves]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _path(path: Any) -> str:
    """Returns `params.conv1.kernel`: an array's path, without the number of its argument."""
    call, number, *inner = path
    named = _joined(inner if call.idx == 0 else (number, *inner))
    return named or f"argument {_joined([number])}"


def _joined(path: Any) -> str:
    keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    return ".".join(key for key in keys if key != "value")  # `value` of an `nnx.Variable`


def _check_no_gradients(jaxpr: Any) -> None:
    """Refuses a program that differentiates in reverse: its transposed operations are no sites."""
    scopes = (eqn.source_info.name_stack for eqn in eqns_in(jaxpr))
    if any("transpose(" in str(scope) for scope in scopes):
        raise InputError(
            "antialias got a function that computes gradients, which would stay those of the "
            "original; differentiate its result instead: jax.grad(aa_flax.antialias(loss))"
        )
