"""Whether given weights are those a model needs."""

from collections.abc import Mapping

from aa_flax.errors import InputError

Shape = tuple[int, ...]


def check_names_and_shapes(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> None:
    """Compares names and shapes; a single error lists all that is missing, too much or different.

    Raises:
        InputError: they differ.
    """
    problems = []
    if missing := sorted(expected.keys() - given.keys()):
        problems.append(f"missing in the weights: {_some(missing)}")
    if unknown := sorted(given.keys() - expected.keys()):
        problems.append(f"not in the model: {_some(unknown)}")
    shapes = [
        f"{name} {given[name]}, the model has {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if shapes:
        problems.append(f"other shapes: {_some(shapes)}")
    if problems:
        raise InputError("the weights do not fit the model; " + "; ".join(problems))


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
