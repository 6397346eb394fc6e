"""Which images of a data set are for training and which for validation."""

import re
from collections.abc import Mapping

from aa_flax.errors import InputError

_USUAL = {"train": ("train",), "val": ("validation", "val", "valid", "test")}
_FORM = "NAME#TRAIN,VAL, e.g. NAME#train[:90%],train[90%:]"


def parse_name(text: str) -> tuple[str, dict[str, str]]:
    """`NAME#TRAIN,VAL` -> the name, and an expression for `train` and for `val` (see `part_of`).

    Without `#` there are no expressions.

    Raises:
        InputError: not two expressions.
    """
    name, mark, given = text.partition("#")
    if not mark:
        return name, {}
    expressions = given.split(",")
    if len(expressions) != 2:
        raise InputError(
            f"config.data.name {text!r} does not say what train and val are; give {_FORM}"
        )
    return name, dict(zip(("train", "val"), expressions, strict=True))


def part_of(
    split: str, expressions: Mapping[str, str], lengths: Mapping[str, int], name: str
) -> tuple[str, range]:
    """What `train` or `val` is: one of the data's own splits, and which images of it.

    Args:
        expressions: `SPLIT`, or a part such as `train[:90%]`, `train[-500:]`, as TFDS writes them.
            Without one, `val` is `validation`, `val`, `valid` or `test`, the first there is.
        lengths: the data's own splits, and how many images each has.
        name: of the data, for the errors.

    Raises:
        InputError: no such split, no slice, or an empty one.
    """
    if not expressions:
        own = next((one for one in _USUAL[split] if one in lengths), None)
        if own is None:
            raise InputError(
                f"{name} has no split {' or '.join(_USUAL[split])}; it has {', '.join(lengths)}; "
                f"say what is train and what is val: {_FORM}"
            )
        return own, range(lengths[own])
    text = expressions[split].strip()
    bound = r"(-?\d+%?)?"
    match = re.fullmatch(rf"([^\[\]]+)(?:\[{bound}:{bound}\])?", text)
    if not match:
        raise InputError(f"config.data.name: {text!r} is not a part of a split; give {_FORM}")
    own, start, stop = match.groups()
    if own not in lengths:
        raise InputError(f"{name} has no split {own!r}; it has {', '.join(lengths)}")
    part = range(lengths[own])[_place(start, lengths[own]) : _place(stop, lengths[own])]
    if not part:
        raise InputError(f"{text} of {name} is empty; {own} has {lengths[own]} images")
    return own, part


def _place(bound: str | None, length: int) -> int | None:
    if bound is None:
        return None
    return round(int(bound[:-1]) * length / 100) if bound.endswith("%") else int(bound)
