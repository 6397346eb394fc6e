"""Average pools: sums over windows that the program divides by the number of pixels."""

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.extend.core import Literal

from aa_flax.transform.options import Options, Refused
from aa_flax.transform.places import Place

if TYPE_CHECKING:
    from aa_flax.transform.interpreter import Interpreter


def check_average(options: Options, place: Place) -> None:
    """Lets an average pool be where a blur would not be the better filter.

    Raises:
        Refused: it is over the whole map, or wider than the blur.
    """
    pooled = [
        out
        for i, out in enumerate(place.output_shape)
        if place.shape[i] != out or place.shape[i] == 1
    ]
    if pooled and all(size == 1 for size in pooled):
        raise Refused("it is the mean of the whole map: nothing is left to alias")
    if max(place.strides) > 2 and options.pool is None and min(place.window) >= options.filter_size:
        raise Refused(
            f"a mean of {min(place.window)} pixels is a wider filter than filter_size="
            f"{options.filter_size}"
        )


def average_of_windows(
    run: "Interpreter", eqn: Any, place: Place
) -> tuple[np.ndarray, tuple[int, ...]]:
    """What the program will divide the sum by, and the part of the map that the windows cover.

    Raises:
        Refused: that cannot be told.
    """
    params = eqn.params
    if max(*params["base_dilation"], *params["window_dilation"]) > 1:
        raise Refused("it is dilated")
    region = tuple(
        out * stride if out * stride <= size else size
        for size, out, stride in zip(
            place.shape, place.output_shape, params["window_strides"], strict=True
        )
    )
    if not any(sum(padding) for padding in params["padding"]):
        return np.array(prod(place.window)), region
    divisor = _divisor(run, eqn)
    if divisor is None:
        raise Refused("it is padded, and what its sum is divided by cannot be told")
    if isinstance(divisor, Literal) or divisor.aval.shape == ():
        return np.array(prod(place.window)), region
    return _counts(eqn), region


def _divisor(run: "Interpreter", eqn: Any) -> Any:
    """The second operand of the division that is the only use of a sum."""
    users = [other for other in run.jaxpr.eqns if eqn.outvars[0] in _variables(other)]
    if len(users) != 1 or users[0].primitive.name not in ("div", "mul"):
        return None
    first, second = users[0].invars
    if users[0].primitive.name == "mul":
        if second is eqn.outvars[0]:
            second = first
        return second if isinstance(second, Literal) or second.aval.shape == () else None
    return second if first is eqn.outvars[0] else None


def _variables(eqn: Any) -> list[Any]:
    return [v for v in eqn.invars if not isinstance(v, Literal)]


def _counts(eqn: Any) -> np.ndarray:
    """The number of pixels in each window, padding not counted."""
    params, shape = eqn.params, eqn.invars[0].aval.shape
    counts = np.ones((1,) * len(shape))
    for axis, size in enumerate(shape):
        low, _ = params["padding"][axis]
        starts = np.arange(eqn.outvars[0].aval.shape[axis]) * params["window_strides"][axis] - low
        stops = np.minimum(starts + params["window_dimensions"][axis], size)
        along = (stops - np.maximum(starts, 0)).reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )
        counts = counts * along
    return counts
