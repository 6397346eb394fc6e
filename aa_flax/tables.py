"""Open tables: things by name that this package fills and that users add to."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from aa_flax.errors import InputError

T = TypeVar("T")


class Table(Mapping[str, T]):
    """Things by name, in the order they were added.

    Args:
        what: one of the things, for messages, e.g. `pool`.
    """

    def __init__(self, what: str):
        self.what = what
        self._items: dict[str, T] = {}

    def register(self, name: str, item: T, *, replace: bool = False) -> None:
        """Adds a thing under a name.

        Raises:
            InputError: the name is taken by another thing, and `replace` was not given.
        """
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
    """The message about an unknown name, with the nearest that are known, or else all of them."""
    nearest = get_close_matches(str(name), list(known), n=3)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"
