"""Errors that a user can correct, checks of arguments, and tables of names that users add to."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from math import inf, nan
from typing import Any, TypeVar, get_args

import numpy as np

T = TypeVar("T")


class InputError(ValueError):
    """An argument, option or file cannot be used: the message says why, and what to do.

    Commands print it as one line instead of a traceback.
    """


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cause(error: Exception | str) -> str:
    """Returns the words of the operating system for an error, or its message if it has none."""
    return getattr(error, "strerror", None) or str(error)


def choice(name: str, value: T, literal: Any) -> T:
    """Returns a value that a `Literal` has; raises an InputError for anything else."""
    if value not in (accepted := get_args(literal)):
        raise InputError(f"{name} must be one of {', '.join(accepted)}; got {value!r}")
    return value


def integer(name: str, value: object, *, least: int) -> int:
    """Returns an integer of Python or NumPy as an int; raises an InputError for anything else."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def integers(name: str, values: Sequence[int], *, count: int | None = None) -> tuple[int, ...]:
    """Returns integers of at least 1: `count` of them, or one or more."""
    if len(values) == 0 if count is None else len(values) != count:
        expected = "at least one entry" if count is None else f"{count} entries"
        raise InputError(f"{name} must have {expected}, got {tuple(values)}")
    return tuple(integer(f"every entry of {name}", value, least=1) for value in values)


def real(name: str, value: object, *, least: float = -inf, most: float = inf) -> float:
    """Returns a finite number within the bounds as a float; InputError for anything else."""
    try:
        number = float(value) if isinstance(value, int | float | np.number) else nan
    except OverflowError:  # an integer beyond any float
        number = inf
    if not isinstance(value, bool) and least <= number <= most and abs(number) != inf:
        return number
    bounds = f"of at least {least}" if most == inf else f"from {least} to {most}"
    raise InputError(f"{name} must be a number {bounds}, got {value!r}")


def fraction(name: str, value: object) -> float:
    """Returns a number from 0 to 1, e.g. a dropout rate, as a float."""
    return real(name, value, least=0, most=1)


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a function, a class or a `partial` of one, by name."""
    arguments, keywords = (), {}
    if isinstance(function, partial):
        function, arguments, keywords = function.func, function.args, function.keywords
    if isinstance(function, type):  # an nnx.Module's class has the signature of its metaclass
        function, arguments = function.__init__, (None, *arguments)
    try:
        return dict(inspect.signature(partial(function, *arguments, **keywords)).parameters)
    except ValueError:  # some built-in functions have none
        return {}


def boolean(name: str, value: object) -> bool:
    """Returns a boolean of Python or NumPy as a bool; anything else is refused, also `"False"`."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, got {value!r}")
    return bool(value)


class Table(Mapping[str, T]):
    """An open table: items by name, in the order they were added.

    Args:
        what: an item, for messages, e.g. `pool`.
    """

    def __init__(self, what: str):
        self.what = what
        self._items: dict[str, T] = {}

    def register(self, name: str, item: T, *, replace: bool = False) -> None:
        """Adds an item; raises an InputError if another has its name, unless `replace`."""
        if not replace and self._items.get(name, item) is not item:
            raise InputError(
                f"there is a {self.what} {name!r} already; choose another name, or give "
                "replace=True"
            )
        self._items[name] = item

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except (KeyError, TypeError):
            raise UnknownName(unknown(self.what, name, self._items)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class UnknownName(InputError, KeyError):
    """A name that a table does not have."""

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return str(self.args[0])


def unknown(what: str, name: object, known: Mapping[str, object] | list[str]) -> str:
    """Returns the message about an unknown name, with the nearest known ones, or else all."""
    nearest = get_close_matches(str(name), list(known), n=3)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"
