"""`antialias(f)`: transforms any JAX function into one with antialiased subsampling.

max pool, stride s           ->  max pool, stride 1  -  blur, stride s
convolution, stride s        ->  convolution, stride 1  -  ...  -  nonlinearity  -  blur, stride s
                             or  blur, stride 1  -  convolution, stride s, before no nonlinearity
1x1 convolution, stride s    ->  blur, stride s  -  1x1 convolution
average pool, stride s       ->  blur, stride s
slice, stride s              ->  blur, stride s

Here `f` is traced. The other files, in the order in which an operation meets them:

interpreter                  runs the traced program, each operation by its rule
sites, constants             detect the operations that subsample
decisions                    decide which of them are antialiased, and by which pool
convolutions, windows        rewrite them
values, pointwise            carry a stride that waits to the nonlinearity
axes, activations            find nonlinearities of maps, and run them on a finer grid
calls                        enter programs inside: jit, loops, branches, checkpoint
aliasing                     measures the maps that sites subsample
"""

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import update_wrapper
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jax.errors import InconclusiveDimensionOperation
from jax.extend.core import jaxpr_as_fun

from aa_flax.errors import InputError
from aa_flax.nn.pool_registry import PoolFactory
from aa_flax.ops import definitions
from aa_flax.ops.blur import Padding

# Their rules. `pointwise` is before `windows`: a reshape that a waiting stride passes is no pool.
from aa_flax.transform import calls, convolutions, pointwise, windows  # noqa: F401
from aa_flax.transform.aliasing import Aliasing, Profile
from aa_flax.transform.budget import within_budget
from aa_flax.transform.constants import left_alone
from aa_flax.transform.decisions import Options, Place, Stem
from aa_flax.transform.interpreter import Interpreter
from aa_flax.transform.jaxpr import eqns_in, opened
from aa_flax.transform.sites import Report, Site

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Antialias:
    """The transformation `aa_flax.antialias`: call it on a function, or on one for its report.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from aa_flax import antialias
        >>> def f(x):
        ...     return jnp.tanh(x)[:, ::2, ::2]
        >>> x = jnp.ones((1, 8, 8, 3))
        >>> jax.jit(antialias(f))(x).shape
        (1, 4, 4, 3)
        >>> (row,) = antialias.report(f, x)
        >>> row.site.kind, row.site.strides, row.done
        ('slice', (2, 2), 'blur')
    """

    def __call__(
        self,
        f: Callable[_P, _R],
        filter_size: int | Literal["auto"] = "auto",
        *,
        padding: Padding = "reflect",
        pool: str | PoolFactory | None = None,
        where: Callable[[Site], bool | Place] | None = None,
        min_channels: int = 4,
        stem: Stem = "leave",
        before: bool | None = None,
        budget: float | None = None,
        activations: int | None = None,
    ) -> "Antialiased[_P, _R]":
        """Returns a function that computes what `f` does, with every subsampling antialiased.

        Like `jax.grad`, it takes a function of arrays and returns one with the same arguments: a
        model of Flax (NNX or Linen), Equinox or Haiku, or a plain function. Where `f` subsamples,
        the new function low-pass filters first, as the paper's models do: a strided max pool
        becomes a dense maximum and a blur; a strided convolution runs densely and its stride waits
        until after the nonlinearity, where it blurs, or reads a blurred map where no nonlinearity
        follows; a strided 1x1 convolution, an average pool or a strided slice becomes or follows a
        blur. Parameters are the same, so trained weights can
        be used.

        It can be differentiated, jitted, vectorized, called within `lax.scan` and so on, but
        derivatives go outside: `jax.grad(antialias(loss))`. What cannot be antialiased is left
        alone, and `antialias.report` says why.

        Args:
            f: any function of arrays (in any pytrees), which JAX can trace. Arguments that are not
                arrays (a flag `train=True`) are passed on unchanged.
            filter_size: taps of every blur. `auto`, the default, is 4 at stride 2 and grows with
                the stride, as in `aa_flax.blur_pool`.
            padding: how the blur continues maps at the border, as in `aa_flax.blur_pool`.
            pool: what subsamples instead of BlurPool: a name of `aa_flax.list_pools()` or a
                function `stride -> module`, without weights.
            where: a function from a `Site` to whether it is antialiased; default: all are. For a
                convolution it may return `before` or `after`: the place of the blur, as in
                `before`, also for a stem.
            min_channels: convolutions of fewer input channels are stems. By default those of images
                (grey or RGB), patch embeddings among them; 0: none.
            stem: what happens to stems. `leave`: they keep their stride, as in the paper's models;
                `blur`: they read a blurred image, which costs little; `dense`: as other
                convolutions, which costs the stem stride**2 times as much.
            before: where strided convolutions are blurred. True: before them, and they keep their
                stride, which is cheap; False: after the nonlinearity, as in the paper. Default:
                after, but before where no nonlinearity follows until something combines positions
                (another convolution, the sum of a residual block): there both orders are the same
                but for the border. 1x1 convolutions are blurred before.
            budget: filters only where they remove most, for at most this fraction of additional
                FLOPs (0.05: 5 %). The sites are chosen once, by `profile` on the arguments of the
                first call, which has to be with numbers, outside of `jax.jit`: those where a filter
                reduces the damage most for its FLOPs. Default: all sites, whatever they cost.
            activations: 2 runs activations on a grid twice as fine, on every spatial axis, and
                filters the result: interpolation and low-pass filter have 13 taps each (6 n + 1 for
                a factor of n) of Kaiser's window, or with `pool="ideal"` are ideal. Those of maps
                that come from a convolution, which shows their spatial axes; normalization stays as
                it is. Default: activations stay as they are.

        Returns:
            The new function. It is traced at every call, so jit it.

        Raises:
            InputError: an invalid option, or when it is called: `f` computes derivatives, or a
                budget's first call is traced, or on a device whose FLOPs JAX does not count.

        Source: Zhang, ICML 2019, Sec. 3.2. Activations: Karras et al., NeurIPS 2021, Sec. 3.2.
        """
        if not callable(f):
            raise InputError(f"antialias takes a function, got a {type(f).__name__}")
        options = Options(
            filter_size, padding, pool, where, min_channels, stem, before, budget, activations
        )
        return Antialiased(f, options)

    def report(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
        """Reports what `antialias` does to `f` at these arguments: every site that subsamples.

        Args:
            f: a function, for the default options, or a result of `antialias`, for its options.
            args, kwargs: arguments of `f`; arrays, or `jax.ShapeDtypeStruct`s of them.
        """
        return (f if isinstance(f, Antialiased) else self(f)).report(*args, **kwargs)

    def profile(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Profile:
        """Measures the aliasing at every site of `f` on these arguments, which it is run on.

        A row has `aliasing_energy`, the fraction of a map's variation that the coarser grid cannot
        represent, and `damage`, how far that moves what the site keeps, relative to an ideal
        filter; `aa_flax.transform.aliasing` has the equations. Its other fields are those of the
        report. A profile says where filters would be useful; `budget` chooses by it.

        Args:
            f: a plain function, to measure it as it is (`done`, `reason` and `extra_flops` are
                then those of `antialias(f)`), or a result of `antialias`, to measure what its
                filters leave.
            args, kwargs: arguments of `f`, arrays of numbers.

        Returns:
            A sequence of `aa_flax.transform.ProfileRow`, which prints as a table. Values are NaN at
            sites that are not measured: look-ups, resizes, space to depth, maps of integers.

        Raises:
            InputError: shapes or traced arrays instead of numbers; a map that is not finite.

        Examples:
            >>> import jax.numpy as jnp
            >>> from aa_flax import antialias
            >>> def every_other(x):
            ...     return x[:, ::2, ::2]
            >>> wave = jnp.cos(2 * jnp.pi * 5 * jnp.arange(16) / 16)  # too fast for 8 pixels
            >>> x = 1 + wave[None, :, None, None] * jnp.ones((1, 16, 16, 3))
            >>> (row,) = antialias.profile(every_other, x)
            >>> round(row.aliasing_energy, 4), round(row.damage, 4)
            (1.0, 0.5)
            >>> (row,) = antialias.profile(antialias(every_other, pool="ideal"), x)
            >>> round(row.damage, 4)
            0.0
        """
        given = f if isinstance(f, Antialiased) else self(f)
        traced = _Traced(given.function, args, kwargs)
        traced.check_numbers("antialias.profile")
        return traced.profile(given.chosen(traced), as_it_is=given is not f)


antialias = Antialias()


class Antialiased(Generic[_P, _R]):
    """A function with antialiased subsampling, the result of `antialias`."""

    def __init__(self, f: Callable[_P, _R], options: Options):
        self.function = f
        self.options = options
        update_wrapper(self, f, updated=())

    def chosen(self, traced: "_Traced") -> Options:
        """Returns the options, at the first call with the sites that the budget pays for."""
        if self.options.budget is not None:
            traced.check_numbers("antialias(f, budget=...), at its first call,")
            every = replace(self.options, budget=None)
            profiles = (traced.profile(every, as_it_is=plain) for plain in (True, False))
            self.options = within_budget(self.options, *profiles, traced.flops())
        return self.options

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        traced = _Traced(self.function, args, kwargs)
        run = traced.interpreter(self.chosen(traced))
        outputs, report = traced.run(run, traced.arrays), run.report()
        for row in report.antialiased:
            if weak := self.options.weakness(row.site.strides):
                text = f"antialias at {row.site.layer}: it hardly filters: {weak}"
                warnings.warn(text, stacklevel=2)
                break
        if not report.antialiased:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            found = "no strided convolution, pool or slice in it"
            if report.left_alone:
                found = (
                    f"each of its {len(report)} sites was left alone (antialias.report says why)"
                )
            warnings.warn(f"antialias changes nothing in {name}: {found}", stacklevel=2)
        return traced.result(outputs)

    def report(self, *args: _P.args, **kwargs: _P.kwargs) -> Report:
        """Reports what is done at each site: see `antialias.report`."""
        traced = _Traced(self.function, args, kwargs)
        run = traced.interpreter(self.chosen(traced))
        jax.eval_shape(lambda arrays: traced.run(run, arrays), traced.arrays)
        return run.report()


class _Traced:
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

    def profile(self, options: Options, *, as_it_is: bool) -> Profile:
        """Measures the function, antialiased with those options or as it is."""
        run = measured = self.interpreter(options)
        if as_it_is:
            jax.eval_shape(lambda arrays: self.run(run, arrays), self.arrays)
            measured = Interpreter(replace(options, where=lambda site: False))
        measured.aliasing = aliasing = Aliasing()
        jax.block_until_ready(jax.jit(lambda x: self.run(measured, x))(self.arrays))
        jax.effects_barrier()
        return aliasing.profile(run.rows, run.report())

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
