"""`antialias(f)`: any JAX function with its subsampling antialiased."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import numpy as np
from jax.errors import InconclusiveDimensionOperation

from aa_flax.errors import InputError
from aa_flax.nn.pool_registry import PoolFactory
from aa_flax.ops import definitions
from aa_flax.ops.blur import Padding
from aa_flax.transform.constants import left_alone
from aa_flax.transform.interpreter import Interpreter
from aa_flax.transform.options import Options
from aa_flax.transform.places import Place, equations
from aa_flax.transform.report import Report

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Antialias:
    """The transformation itself, `aa_flax.antialias`: see `__call__` and `report`."""

    def __call__(
        self,
        f: Callable[_P, _R],
        filter_size: int = 4,
        *,
        padding: Padding = "reflect",
        pool: str | PoolFactory | None = None,
        where: Callable[[Place], bool] | None = None,
        min_channels: int = 4,
        before: bool = False,
    ) -> "Antialiased[_P, _R]":
        """A function that computes what `f` does, with every subsampling antialiased.

        Like `jax.grad`, it takes a function of arrays and gives one with the same arguments: a net
        of Flax (NNX or Linen), Equinox or Haiku, or a plain function. Where `f` subsamples, the new
        function low-pass filters first, as the paper's nets do: a strided max pool becomes a dense
        maximum and a blur; a strided convolution runs densely and its stride waits until after the
        nonlinearity, where it blurs; a strided 1x1 convolution, an average pool or a strided slice
        becomes or follows a blur. Parameters are the same, so trained weights go on.

        It can be differentiated, jitted, vectorised, called within `lax.scan` and so on, but
        derivatives go outside: `jax.grad(antialias(loss))`. What cannot be antialiased is left as
        it is, and `antialias.report` says why.

        Args:
            f: any function of arrays (in any pytrees), which JAX can trace. Arguments that are no
                arrays (a switch `train=True`) are passed on as they are.
            filter_size: taps of every BlurPool.
            padding: how the blur continues maps at the border, as in `aa_flax.blur_pool`.
            pool: what subsamples instead of BlurPool: a name of `aa_flax.list_pools()` or a
                function `stride -> module`, without weights of its own.
            where: says of each `Place` whether to antialias it; default: all.
            min_channels: convolutions of fewer input channels keep their stride. By default those
                of images (grey or RGB), since a dense stem costs four times as much; 0: none.
            before: blur in front of strided convolutions, which keep their stride, instead of
                behind the nonlinearity: cheaper, and less than the paper does.

        Returns:
            The new function. It is traced at every call, so jit it.

        Raises:
            InputError: an option that is none, or when it is called: `f` computes derivatives.

        Source: Zhang, ICML 2019, Sec. 3.2.
        """
        if not callable(f):
            raise InputError(f"antialias takes a function, got a {type(f).__name__}")
        return Antialiased(f, Options(filter_size, padding, pool, where, min_channels, before))

    def report(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
        """What `antialias` does to `f` at these arguments: every place that subsamples.

        Args:
            f: a function, seen with the default options, or one that `antialias` gave, with its.
            args, kwargs: what `f` is called with; arrays, or `jax.ShapeDtypeStruct`s of them.

        Returns:
            A row for each place: layer, operation, shape, stride, what was done, why it was left
            alone, extra FLOPs. It prints as a table.
        """
        antialiased = f if isinstance(f, Antialiased) else self(f)
        return antialiased.report(*args, **kwargs)


antialias = Antialias()


class Antialiased(Generic[_P, _R]):
    """A function with its subsampling antialiased; `antialias` makes it."""

    def __init__(self, f: Callable[_P, _R], options: Options):
        self.function = f
        self.options = options
        update_wrapper(self, f, updated=())

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        traced = _Traced.of(self.function, args, kwargs)
        run = Interpreter(self.options)
        outputs = traced.run(run)
        _warn_if_nothing_was_done(self.function, run.report())
        return traced.result(outputs)

    def report(self, *args: _P.args, **kwargs: _P.kwargs) -> Report:
        """What is done at each place: see `antialias.report`."""
        run = Interpreter(self.options)
        abstract = _Traced.of(self.function, args, kwargs)
        jax.eval_shape(lambda arrays: abstract.with_arrays(arrays).run(run), abstract.arrays)
        return run.report()


def _warn_if_nothing_was_done(f: Callable[..., Any], report: Report) -> None:
    if report.antialiased:
        return
    name = getattr(f, "__name__", type(f).__name__)
    found = "no strided convolution, pool or slice in it"
    if report.left_alone:
        found = f"each of its {len(report)} places was left alone (antialias.report says why)"
    warnings.warn(f"antialias changes nothing in {name}: {found}", stacklevel=3)


@dataclass
class _Traced:
    """A function's program at certain arguments."""

    jaxpr: Any
    arrays: list[Any]
    names: list[str]
    own: dict[int, tuple[Any, str]]
    result: Callable[[list[Any]], Any]

    @classmethod
    def of(cls, f: Callable[..., Any], args: Any, kwargs: Any) -> "_Traced":
        with_paths, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
        leaves = [leaf for _, leaf in with_paths]
        dynamic = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]
        results: list[Any] = []

        def flat(*arrays: Any) -> list[Any]:
            filled = list(leaves)
            for i, array in zip(dynamic, arrays, strict=True):
                filled[i] = array
            own_args, own_kwargs = tree.unflatten(filled)
            results[:] = jax.tree.flatten(f(*own_args, **own_kwargs))
            return [leaf for leaf in results[0] if _is_array(leaf)]

        with definitions():
            jaxpr = jax.make_jaxpr(flat)(*(leaves[i] for i in dynamic))
        _check_no_gradients(jaxpr.jaxpr)
        found, out_tree = results

        def result(arrays: list[Any]) -> Any:
            remaining = iter(arrays)
            return out_tree.unflatten(
                [next(remaining) if _is_array(leaf) else leaf for leaf in found]
            )

        names = [_path(with_paths[i][0]) for i in dynamic]
        own, _ = jax.tree_util.tree_flatten_with_path(inspect.unwrap(f))  # a model has arrays
        named = {id(x): (x, _joined(path)) for path, x in own if _is_array(x)}
        return cls(jaxpr, [leaves[i] for i in dynamic], names, named, result)

    def with_arrays(self, arrays: list[Any]) -> "_Traced":
        return replace(self, arrays=arrays)

    def run(self, run: Interpreter) -> list[Any]:
        run.names.update(self.own)
        run.names.update(
            (id(array), (array, name)) for array, name in zip(self.arrays, self.names, strict=True)
        )
        try:
            run.alone.update(left_alone(self.jaxpr.jaxpr, self.jaxpr.consts))
            return run.run_settled(self.jaxpr.jaxpr, self.jaxpr.consts, self.arrays)
        except InconclusiveDimensionOperation as error:
            raise InputError(
                f"antialias cannot leave these sizes open: {str(error).splitlines()[0]} Give them "
                "numbers, or constraints that decide it (h >= 8)"
            ) from error


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _path(path: Any) -> str:
    """`params.conv1.kernel` of an argument's place, the number of the argument left out."""
    call, number, *inner = path
    named = _joined(inner if call.idx == 0 else (number, *inner))
    return named or f"argument {_joined([number])}"


def _joined(path: Any) -> str:
    keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    return ".".join(key for key in keys if key != "value")


def _check_no_gradients(jaxpr: Any) -> None:
    """A transposed operation would go on being that of the original.

    Raises:
        InputError: the program differentiates in reverse.
    """
    for eqn in equations(jaxpr):
        if "transpose(" in str(eqn.source_info.name_stack):
            raise InputError(
                "antialias got a function that computes gradients, which would stay those of the "
                "original; differentiate its result instead: jax.grad(aa_flax.antialias(loss))"
            )
