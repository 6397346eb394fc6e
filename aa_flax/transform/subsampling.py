"""What takes the place of an operation that subsamples (Zhang, ICML 2019, Sec. 3.2).

max pool, stride s           ->  max pool, stride 1  -  blur, stride s
convolution, stride s        ->  convolution, stride 1  -  ...  -  nonlinearity  -  blur, stride s
1x1 convolution, stride s    ->  blur, stride s  -  1x1 convolution
average pool, stride s       ->  blur, stride s
slice, stride s              ->  blur, stride s
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from aa_flax.transform import costs, dense, pointwise
from aa_flax.transform.averages import average_of_windows, check_average
from aa_flax.transform.options import Refused, Sampler
from aa_flax.transform.places import (
    Place,
    describe,
    is_reshape_pool,
    members,
    pooled_by_reshape,
)
from aa_flax.transform.values import (
    Pending,
    Value,
    channels_last_shape,
    on_channels_last,
)

if TYPE_CHECKING:
    from aa_flax.transform.interpreter import Interpreter


def convolution(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value]:
    """A convolution, antialiased where it has a stride."""
    place = describe(eqn, run.layer(eqn, inputs))
    x, kernel = (run.settle(v, eqn) for v in inputs)
    if place is None:
        return [dense.convolve(run, eqn, x, kernel)]
    place = replace(place, channels=(place.channels or 0) // members(run.jaxpr, eqn))
    return _attempt(
        run,
        eqn,
        place,
        lambda: _antialiased_convolution(run, eqn, place, x, kernel),
        lambda: dense.convolve(run, eqn, x, kernel),
    )


def _attempt(
    run: "Interpreter",
    eqn: Any,
    place: Place,
    antialiased: Callable[[], Value],
    original: Callable[[], Value],
) -> list[Value]:
    """The antialiased form; the original where the options or the pool say no."""
    try:
        if id(eqn) in run.alone:
            raise Refused(run.alone[id(eqn)].reason)
        _check_asked_for(run, place)
        return [antialiased()]
    except Refused as refusal:
        run.record(eqn, place, reason=str(refusal))
        return [original()]


def _check_asked_for(run: "Interpreter", place: Place) -> None:
    least = run.options.min_channels
    if place.kind == "convolution" and place.channels is not None and place.channels < least:
        raise Refused(f"its input has {place.channels} channels, fewer than min_channels={least}")
    if run.options.where is not None and not run.options.where(place):
        raise Refused("where said no")


def _antialiased_convolution(
    run: "Interpreter", eqn: Any, place: Place, x: Array, kernel: Array
) -> Value:
    params = eqn.params
    numbers = params["dimension_numbers"]
    if max(params["lhs_dilation"]) > 1:
        raise Refused("its input is dilated: it changes the resolution by a fraction")
    if params["batch_group_count"] > 1:
        raise Refused("it has groups of the batch")
    if run.options.before:
        return _blurred_before(run, eqn, place, x, kernel)
    commutes = all(
        window == 1 and padding == (0, 0)
        for stride, window, padding in zip(
            place.strides, place.window, params["padding"], strict=True
        )
        if stride > 1
    )
    if commutes:
        return _blurred_first(run, eqn, place, x, kernel)
    shape = dense.convolved_shape(eqn, x, kernel)
    roles = _roles(numbers.out_spec)
    sampler = _sampler(run, eqn, place, shape, roles, place.output_shape, x)
    extra = costs.convolution(eqn, shape) - costs.convolution(eqn, place.output_shape)
    extra += costs.sampling(run.options, sampler, place.strides, place.output_shape)
    run.record(eqn, place, done="dense, then blur", extra=extra)
    return Pending(
        dense=dense.convolve(run, eqn, x, kernel, stride=1),
        shape=place.output_shape,
        strides=_by_axis(place.strides, numbers.out_spec[2:], len(shape)),
        roles=roles,
        sample=sampler,
        places=frozenset({run.key(eqn)}),
    )


def _blurred_first(run: "Interpreter", eqn: Any, place: Place, x: Array, kernel: Array) -> Array:
    """A 1x1 convolution of the subsampled map: the two commute, and this is cheaper."""
    numbers = eqn.params["dimension_numbers"]
    roles, sampled = _roles(numbers.lhs_spec), list(x.shape)
    for own, other in zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True):
        sampled[own] = place.output_shape[other] + _window_loss(eqn, place, other)
    sampler = _sampler(run, eqn, place, x.shape, roles, sampled, x)
    extra = costs.sampling(run.options, sampler, place.strides, sampled)
    run.record(eqn, place, done="blur, then dense", extra=extra)
    return dense.convolve(run, eqn, on_channels_last(sampler, x, roles), kernel, stride=1)


def _window_loss(eqn: Any, place: Place, out_axis: int) -> int:
    """Positions that an axis loses by the window itself (of those without a stride)."""
    i = eqn.params["dimension_numbers"].out_spec[2:].index(out_axis)
    low, high = eqn.params["padding"][i]
    return (place.window[i] - 1) * eqn.params["rhs_dilation"][i] - low - high


def _blurred_before(run: "Interpreter", eqn: Any, place: Place, x: Array, kernel: Array) -> Array:
    """The strided convolution of a blurred map: cheap, and not where the paper puts it."""
    ones = (1,) * len(place.strides)
    roles = _roles(eqn.params["dimension_numbers"].lhs_spec)
    seen = channels_last_shape(x.shape, roles)
    sampler = run.options.sampler(ones, seen, seen, x.dtype)
    extra = costs.sampling(run.options, sampler, ones, x.shape)
    run.record(eqn, place, done="blur with stride 1, then as it was", extra=extra)
    return dense.convolve(run, eqn, on_channels_last(sampler, x, roles), kernel)


def max_pool(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value]:
    """A max pool, antialiased where it has a stride; other windows stay as they are."""
    place = describe(eqn, run.layer(eqn, inputs))
    x, *others = (run.settle(v, eqn) for v in inputs)
    if place is None:
        return dense.window(run, eqn, x, others)
    return _attempt(
        run,
        eqn,
        place,
        lambda: _antialiased_max_pool(run, eqn, place, x, others),
        lambda: dense.window(run, eqn, x, others)[0],
    )


def _antialiased_max_pool(
    run: "Interpreter", eqn: Any, place: Place, x: Array, others: Sequence[Array]
) -> Array:
    if place.kind != "max pool":
        raise Refused(f"{place.primitive} is no pool that is known here")
    if max(eqn.params["base_dilation"]) > 1:
        raise Refused("its input is dilated")
    roles = _window_roles(eqn)
    ones = (1,) * x.ndim
    shape = jax.eval_shape(lambda x: dense.window(run, eqn, x, others, strides=ones)[0], x).shape
    sampler = _sampler(run, eqn, place, shape, roles, place.output_shape, x)
    extra = prod(place.window) * (prod(shape) - prod(place.output_shape))
    extra += costs.sampling(run.options, sampler, place.strides, place.output_shape)
    run.record(eqn, place, done="dense max, then blur", extra=extra)
    (y,) = dense.window(run, eqn, x, others, strides=ones)
    return on_channels_last(sampler, y, roles)


def average_pool(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A sum over windows, which the program divides by their size: a blur, times that size."""
    place = describe(eqn, run.layer(eqn, inputs))
    if place is None:
        return None
    if dense.is_uniform(inputs[0]):  # what counts the pixels in each window
        return None
    x = run.settle(inputs[0], eqn)

    def antialiased() -> Array:
        check_average(run.options, place)
        sizes, region = average_of_windows(run, eqn, place)
        roles = _window_roles(eqn)
        x_used = lax.slice(x, (0,) * x.ndim, region)
        sampler = _sampler(run, eqn, place, x_used.shape, roles, place.output_shape, x)
        extra = costs.sampling(run.options, sampler, place.strides, place.output_shape)
        extra -= prod(place.window) * prod(place.output_shape)
        run.record(eqn, place, done="blur in its place", extra=extra)
        return on_channels_last(sampler, x_used, roles) * jnp.asarray(sizes, x.dtype)

    return _attempt(run, eqn, place, antialiased, lambda: run.bind(eqn, [x])[0])


def split(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A reshape that may begin a pool (`x.reshape(n, h, 2, w, 2, c).mean((2, 4))`): remembered."""
    if not is_reshape_pool(eqn) or len(inputs) > 1:
        return None
    waiting = pointwise.reshape(run, eqn, inputs)
    if waiting is not None:
        return waiting
    x = run.settle(inputs[0], eqn)
    outputs = run.bind(eqn, [x])
    run.splits[id(outputs[0])] = (outputs[0], x)
    return outputs


def pool_of_split(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """The second half of such a pool."""
    value = inputs[0]
    _, x = run.splits.get(id(value), (None, None))
    if x is None:
        return None
    windows = pooled_by_reshape(x.shape, value.shape, eqn.params["axes"])
    if windows is None or len(windows) == 1:
        return None
    average = eqn.primitive.name == "reduce_sum"
    strides = tuple(windows.values())
    place = Place(
        run.layer(eqn, inputs),
        "average pool" if average else "max pool",
        f"reshape, {eqn.primitive.name}",
        x.shape,
        eqn.outvars[0].aval.shape,
        strides,
        strides,
        None,
    )
    roles = "".join("s" if i in windows else "n" if i == 0 else "c" for i in range(x.ndim))

    def antialiased() -> Array:
        if average:
            check_average(run.options, place)
        y = x if average else dense.window_maximum(x, windows)
        sampler = _sampler(run, eqn, place, y.shape, roles, place.output_shape, x)
        extra = costs.sampling(run.options, sampler, strides, place.output_shape)
        if average:
            run.record(eqn, place, done="blur in its place", extra=extra - prod(x.shape))
            return on_channels_last(sampler, y, roles) * jnp.asarray(prod(strides), x.dtype)
        extra += prod(strides) * prod(y.shape) - prod(x.shape)
        run.record(eqn, place, done="dense max, then blur", extra=extra)
        return on_channels_last(sampler, y, roles)

    return _attempt(run, eqn, place, antialiased, lambda: run.bind(eqn, [value])[0])


def strided_slice(run: "Interpreter", eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """`x[:, ::2, ::2]`: a blur of what the slice covers."""
    place = describe(eqn, run.layer(eqn, inputs))
    if place is None:
        return None
    x = run.settle(inputs[0], eqn)
    params = eqn.params

    def antialiased() -> Array:
        _check_slice(run, eqn, x, place)
        covered = lax.slice(x, params["start_indices"], params["limit_indices"])
        roles = "".join(
            "s" if stride > 1 else "n" if i == 0 else "c"
            for i, stride in enumerate(params["strides"])
        )
        sampler = _sampler(run, eqn, place, covered.shape, roles, place.output_shape, x)
        extra = costs.sampling(run.options, sampler, place.strides, place.output_shape)
        run.record(eqn, place, done="blur", extra=extra)
        return on_channels_last(sampler, covered, roles)

    return _attempt(run, eqn, place, antialiased, lambda: run.bind(eqn, [x])[0])


def _check_slice(run: "Interpreter", eqn: Any, x: Array, place: Place) -> None:
    axes = [i for i, stride in enumerate(eqn.params["strides"]) if stride > 1]
    images = {(1, 2), (2, 3), (1, 2, 3), (2, 3, 4), (0, 1)}
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise Refused(f"{x.dtype} values have no mean")
    if tuple(axes) not in images or max(axes) >= x.ndim or x.ndim < 3:
        raise Refused("its axes are not those of images, as far as a slice can tell")
    if len(run.sliced[eqn.invars[0], eqn.params["strides"]]) > 1:
        raise Refused(
            "other slices of the same array keep what it drops: together they rearrange, pool or "
            "filter it"
        )


def phases_sliced(jaxpr: Any) -> dict[Any, set[tuple[int, ...]]]:
    """The phases that slices of a program keep, by variable and strides."""
    phases = defaultdict(set)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "slice" and describe(eqn, ""):
            starts, strides = eqn.params["start_indices"], eqn.params["strides"]
            phase = tuple(start % stride for start, stride in zip(starts, strides, strict=True))
            phases[eqn.invars[0], strides].add(phase)
    return phases


def _sampler(
    run: "Interpreter",
    eqn: Any,
    place: Place,
    shape: Sequence[int],
    roles: str,
    sampled: Sequence[int],
    source: Array,
) -> Sampler:
    """The pool of a place, for maps of `shape` in its own layout.

    Raises:
        Refused: the pool cannot, or the values are no real numbers.
    """
    if not jnp.issubdtype(source.dtype, jnp.floating):
        raise Refused(f"{source.dtype} values have no mean")
    seen, wanted = (channels_last_shape(sizes, roles) for sizes in (shape, sampled))
    sampler = run.options.sampler(place.strides, seen, wanted, source.dtype)
    if sampler.decides:
        sampler.phase = run.shared_phase(source, eqn, place.strides)
    return sampler


def _roles(spec: Sequence[int]) -> str:
    """The role of each axis, of a convolution's `dimension_numbers`."""
    roles = ["s"] * len(spec)
    roles[spec[0]], roles[spec[1]] = "n", "c"
    return "".join(roles)


def _window_roles(eqn: Any) -> str:
    """The role of each axis of a pool: spatial are those with a window or a stride."""
    sizes = zip(eqn.params["window_dimensions"], eqn.params["window_strides"], strict=True)
    return "".join("s" if max(pair) > 1 else "n" if i == 0 else "c" for i, pair in enumerate(sizes))


def _by_axis(strides: Sequence[int], axes: Sequence[int], count: int) -> tuple[int, ...]:
    by_axis = [1] * count
    for stride, axis in zip(strides, axes, strict=True):
        by_axis[axis] = stride
    return tuple(by_axis)


RULES: dict[str, pointwise.Rule] = {
    "conv_general_dilated": convolution,
    **dict.fromkeys(("reduce_window_max", "reduce_window", "reduce_window_min"), max_pool),
    "reduce_window_sum": average_pool,
    "reshape": split,
    **dict.fromkeys(("reduce_sum", "reduce_max"), pool_of_split),
    "slice": strided_slice,
}
