"""Whether given weights are those a model needs."""

from collections.abc import Iterable, Mapping

from aa_flax.errors import InputError
from aa_flax.weights.state_dicts import common_prefixes

Shape = tuple[int, ...]


def check_names_and_shapes(
    expected: Mapping[str, Shape], given: Mapping[str, Shape], hint: str = ""
) -> None:
    """Compares names and shapes; a single error lists all that is missing, too much or different.

    Args:
        hint: what to add to the error: a cause, or what to do.

    Raises:
        InputError: they differ.
    """
    problems = []
    if missing := [name for name in expected if name not in given]:
        problems.append(f"missing in the weights: {_some(missing)}")
    if unknown := [name for name in given if name not in expected]:
        problems.append(f"not in the model: {_some(unknown)}")
    shapes = [
        f"{name} {given[name]}, the model has {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if shapes:
        problems.append(f"other shapes: {_some(shapes)}")
    if problems:
        if not expected.keys() & given.keys():
            problems.append(_found(given))
        problems += [hint] if hint else []
        raise InputError("the weights do not fit the model; " + "; ".join(problems))


def _found(names: Iterable[str]) -> str:
    """What stands there in place of all that was looked for."""
    names = list(names)
    if not names:
        return "there are no weights in it"
    prefixes = common_prefixes(names) if len(names) > 1 else []
    under = f", all under {prefixes[-1]}" if prefixes else ""
    return f"no name is one of the model's, found are {_some(names, 3)}{under}"


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
