"""Checks of the numbers and switches that a caller gives."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from math import inf, nan

import numpy as np

from aa_flax.errors import InputError


def whole_number(name: str, value: object, *, least: int) -> int:
    """The value as an int, of Python's or NumPy's; a truth value is not a number.

    Raises:
        InputError: another type, or a number below `least`.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def whole_numbers(name: str, values: Sequence[int], *, count: int | None = None) -> tuple[int, ...]:
    """The values as ints of at least 1; `count` of them, or one or more.

    Raises:
        InputError: another number of values, or a value that is none of these.
    """
    wrong_count = len(values) == 0 if count is None else len(values) != count
    if wrong_count:
        expected = "at least one entry" if count is None else f"{count} entries"
        raise InputError(f"{name} must have {expected}, got {tuple(values)}")
    return tuple(whole_number(f"every entry of {name}", value, least=1) for value in values)


def real_number(name: str, value: object, *, least: float = -inf, most: float = inf) -> float:
    """The value as a finite float within the bounds.

    Raises:
        InputError: another type, not a number or outside the bounds.
    """
    try:
        number = float(value) if isinstance(value, int | float | np.number) else nan
    except OverflowError:  # an integer beyond any float
        number = inf
    if not isinstance(value, bool) and least <= number <= most and abs(number) != inf:
        return number
    bounds = f"of at least {least}" if most == inf else f"from {least} to {most}"
    raise InputError(f"{name} must be a number {bounds}, got {value!r}")


def share(name: str, value: object) -> float:
    """A number from 0 to 1, such as a dropout rate.

    Raises:
        InputError: anything else.
    """
    return real_number(name, value, least=0, most=1)


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """What may be given to a function, a class or a `partial` of one, by name."""
    arguments, keywords = (), {}
    if isinstance(function, partial):
        function, arguments, keywords = function.func, function.args, function.keywords
    if isinstance(function, type):  # the signature of an nnx.Module's class says nothing
        function, arguments = function.__init__, (None, *arguments)
    try:
        return dict(inspect.signature(partial(function, *arguments, **keywords)).parameters)
    except ValueError:  # some built-in functions have none
        return {}


def switch(name: str, value: object) -> bool:
    """True or False, of Python's or NumPy's.

    Raises:
        InputError: anything else; `"False"`, too, which Python takes for true.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, got {value!r}")
    return bool(value)
