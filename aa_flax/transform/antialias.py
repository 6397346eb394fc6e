"""`antialias(f)`: transforms any JAX function into one with antialiased subsampling.

max pool, stride s           ->  max pool, stride 1  -  blur, stride s
convolution, stride s        ->  convolution, stride 1  -  ...  -  nonlinearity  -  blur, stride s
                             or  blur, stride 1  -  convolution, stride s, before no nonlinearity
1x1 convolution, stride s    ->  blur, stride s  -  1x1 convolution
average pool, stride s       ->  blur, stride s
slice, stride s              ->  blur, stride s

The other files, in the order in which an operation meets them:

traced                       traces `f`, and runs its program for a result, report or profile
interpreter                  runs a program, each operation by its rule
sites, constants             detect the operations that subsample
decisions                    decide which of them are antialiased, and by which pool
convolutions, windows        rewrite them
values, pointwise            carry a stride that waits to the nonlinearity
axes, activations            find nonlinearities of maps, and run them on a finer grid
calls                        enter programs inside: jit, loops, branches, checkpoint
aliasing, profile            measure the maps that sites subsample, and what filters cost
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import update_wrapper
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import jax

from aa_flax.errors import InputError, boolean
from aa_flax.nn.pool_registry import PoolFactory
from aa_flax.ops.blur import Padding
from aa_flax.transform.budget import within_budget
from aa_flax.transform.canonical import Layout
from aa_flax.transform.decisions import Options, Place, Stem
from aa_flax.transform.profile import Profile, check_vectors, located
from aa_flax.transform.sites import Report, Site
from aa_flax.transform.traced import Traced

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

    def profile(
        self,
        f: Callable[..., Any],
        *args: Any,
        milliseconds: bool = False,
        lie: Layout | None = None,
        **kwargs: Any,
    ) -> Profile:
        """Measures the aliasing at every site of `f` on these arguments, which it is run on.

        A row has `aliasing_energy`, the fraction of a map's variation that the coarser grid cannot
        represent, and `damage`, how far that moves what the site keeps, relative to an ideal
        filter; `aa_flax.transform.aliasing` has the equations. Its other fields are those of the
        report. A profile says where filters would be useful; `budget` chooses by it.

        On request a row has two more. `extra_milliseconds` is the time of the function with the
        filter of this site alone, minus the time without filters: the median of the differences of
        20 rounds, in which all versions run one after another. Each version is compiled.
        `lie_share` is the part that the site's subsampling has in the Lie derivative of `f`, how
        much its outputs change when the images move by an infinitesimal amount (mean of both
        axes); `aa_flax.transform.profile` has the equation. The rest to 1 is that of other
        operations, such as nonlinearities and padding.

        Args:
            f: a plain function, to measure it as it is (`done`, `reason` and `extra_flops` are
                then those of `antialias(f)`), or a result of `antialias`, to measure what its
                filters leave.
            args, kwargs: arguments of `f`, arrays of numbers.
            milliseconds: measure `extra_milliseconds`.
            lie: measure `lie_share`, for images of this layout (`NHWC` or `NCHW`), which are the
                last positional argument, as in `f(images)` and `f(params, images)`. The outputs of
                `f` have to be vectors, such as the probabilities of a classifier.

        Returns:
            A sequence of `aa_flax.transform.ProfileRow`, which prints as a table. Values are NaN at
            sites that are not measured: look-ups, resizes, space to depth, maps of integers.

        Raises:
            InputError: shapes or traced arrays instead of numbers; a map that is not finite; with
                `lie`, no images of floating-point numbers, or an output that is no vector.

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
        traced = Traced(given.function, args, kwargs)
        traced.check_numbers("antialias.profile")
        options = given.chosen(traced)
        times = traced.added_milliseconds(options) if boolean("milliseconds", milliseconds) else {}
        images = None if lie is None else located(args, traced.arrays, lie)
        if images:
            check_vectors(traced.outputs)
        return traced.profile(options, as_it_is=given is not f, times=times, images=images)


antialias = Antialias()


class Antialiased(Generic[_P, _R]):
    """A function with antialiased subsampling, the result of `antialias`."""

    def __init__(self, f: Callable[_P, _R], options: Options):
        self.function = f
        self.options = options
        update_wrapper(self, f, updated=())

    def chosen(self, traced: "Traced") -> Options:
        """Returns the options, at the first call with the sites that the budget pays for."""
        if self.options.budget is not None:
            traced.check_numbers("antialias(f, budget=...), at its first call,")
            every = replace(self.options, budget=None)
            profiles = (traced.profile(every, as_it_is=plain) for plain in (True, False))
            self.options = within_budget(self.options, *profiles, traced.flops())
        return self.options

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        traced = Traced(self.function, args, kwargs)
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
        traced = Traced(self.function, args, kwargs)
        run = traced.interpreter(self.chosen(traced))
        jax.eval_shape(lambda arrays: traced.run(run, arrays), traced.arrays)
        return run.report()
