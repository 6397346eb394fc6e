"""Rules for strided convolutions.

A convolution runs densely and its stride waits until after the nonlinearity (a `Pending` map).
Convolution and blur commute, but for the border, so where no nonlinearity follows the cheaper order
is blur first: a 1x1 convolution then reads the subsampled map, any other keeps its stride.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from jax import lax
from jaxtyping import Array

from aa_flax import ops
from aa_flax.ops.padding import given_padding
from aa_flax.transform.axes import roles_of
from aa_flax.transform.interpreter import Interpreter, rule
from aa_flax.transform.jaxpr import bind
from aa_flax.transform.sites import Site, describe, ensemble_size
from aa_flax.transform.values import Pending, Value, on_channels_last

_NHWC = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))


@rule("conv_general_dilated")
def convolution(run: Interpreter, eqn: Any, inputs: list[Value]) -> list[Value]:
    """A convolution, antialiased where it has a stride."""
    site = describe(eqn, run.layer(eqn, inputs))
    x, kernel = (run.settle(v, eqn) for v in inputs)
    dense, roles = partial(_convolve, eqn, x, kernel, stride=1), _output_roles(eqn)
    if site is None:
        kept = None
        if id(eqn) in run.alone:  # a blur
            kept = run.measure([run.key(eqn)], dense, roles, eqn.params["window_strides"])
        return [_convolve(eqn, x, kernel) if kept is None else kept]
    site = replace(site, channels=(site.channels or 0) // ensemble_size(run.jaxpr, eqn))
    by_axis = zip(site.strides, site.window, eqn.params["padding"], strict=True)
    pointwise = all(size == 1 and pads == (0, 0) for stride, size, pads in by_axis if stride > 1)
    place = run.options.place(site, pointwise=pointwise, linear=run.key(eqn) in run.linear)
    rewrite = _blurred_after
    if place == "before":
        rewrite = _blurred_first if pointwise else _blurred_before
    rewritten = run.attempt(eqn, site, lambda: rewrite(run, eqn, site, x, kernel), dense, roles)
    return rewritten or [_convolve(eqn, x, kernel)]


def _blurred_after(run: Interpreter, eqn: Any, site: Site, x: Array, kernel: Array) -> Pending:
    """The dense convolution, whose map is blurred where the nonlinearity has been applied."""
    spec = eqn.params["dimension_numbers"].out_spec
    dense, roles = _convolve(eqn, x, kernel, stride=1), _output_roles(eqn)
    sampler = run.sampler(eqn, site, x, dense.shape, roles)
    extra = _flops(eqn, dense.shape) - _flops(eqn, site.output_shape)
    extra += sampler.flops(site.output_shape)
    run.record(eqn, site, done="dense, then blur", extra=extra)
    strides = dict(zip(spec[2:], site.strides, strict=True))
    return Pending(
        dense=dense,
        shape=site.output_shape,
        strides=tuple(strides.get(axis, 1) for axis in range(dense.ndim)),
        roles=roles,
        sample=sampler,
        sites=frozenset({run.key(eqn)}),
    )


def _blurred_first(run: Interpreter, eqn: Any, site: Site, x: Array, kernel: Array) -> Array:
    """A 1x1 convolution of the subsampled map: the two commute, and this is cheaper."""
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    sampled = list(x.shape)
    for i, (own, other) in enumerate(zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)):
        # An axis without a stride may have a window, by which the convolution shortens it later.
        shortened = (site.window[i] - 1) * params["rhs_dilation"][i] - sum(params["padding"][i])
        sampled[own] = site.output_shape[other] + shortened
    roles, shorter = roles_of(numbers.lhs_spec), replace(site, output_shape=tuple(sampled))
    sampler = run.sampler(eqn, shorter, x, x.shape, roles)
    run.record(eqn, site, done="blur, then dense", extra=sampler.flops(sampled))
    kept = _measure_of_blurred(
        run, eqn, lambda: on_channels_last(sampler.filtered, x, roles), kernel
    )
    if kept is not None:
        return kept
    return _convolve(eqn, on_channels_last(sampler, x, roles), kernel, stride=1)


def _blurred_before(run: Interpreter, eqn: Any, site: Site, x: Array, kernel: Array) -> Array:
    """The strided convolution of a blurred map."""
    roles = roles_of(eqn.params["dimension_numbers"].lhs_spec)
    sampler = run.sampler(eqn, site, x, x.shape, roles, keeps=True)
    run.record(eqn, site, done="blur with stride 1, then as it was", extra=sampler.flops(x.shape))
    blurred = on_channels_last(sampler, x, roles)
    kept = _measure_of_blurred(run, eqn, lambda: blurred, kernel)
    return _convolve(eqn, blurred, kernel) if kept is None else kept


def _measure_of_blurred(
    run: Interpreter, eqn: Any, blurred: Callable[[], Array], kernel: Array
) -> Array | None:
    def dense() -> Array:
        return _convolve(eqn, blurred(), kernel, stride=1)

    return run.measure([run.key(eqn)], dense, _output_roles(eqn), eqn.params["window_strides"])


def _convolve(eqn: Any, x: Array, kernel: Array, stride: int | None = None) -> Array:
    """Applies the convolution of an equation, with that stride on every axis or its own.

    The program was traced with this package's definitions, so that it can be read. Here a
    convolution gets the faster kernel of `aa_flax.ops` again, where it has one.
    """
    params = eqn.params
    strides = params["window_strides"] if stride is None else (stride,) * (x.ndim - 2)
    layout = (params["dimension_numbers"], params["batch_group_count"], params["out_sharding"])
    result_type = params["preferred_element_type"]
    is_open = not all(isinstance(n, int) for pair in params["padding"] for n in pair)
    if layout != (_NHWC, 1, None) or result_type not in (None, x.dtype) or is_open:
        return bind(eqn, [x, kernel], window_strides=strides)[0]
    options = ("lhs_dilation", "rhs_dilation", "feature_group_count", "precision")
    with given_padding():
        return ops.conv_general_dilated(
            x, kernel, strides, params["padding"], **{name: params[name] for name in options}
        )


def _flops(eqn: Any, output_shape: tuple[int, ...]) -> float:
    kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
    return 2.0 * prod(output_shape) * prod(kernel[i] for i in spec[2:]) * kernel[spec[1]]


def _output_roles(eqn: Any) -> str:
    return roles_of(eqn.params["dimension_numbers"].out_spec)
