"""Training and validation parts of data sets with named splits, in the notation of TFDS."""

import re
from collections.abc import Mapping

from aa_flax.errors import InputError

_USUAL = {"train": ("train",), "val": ("validation", "val", "valid", "test")}
_NOTATION = "NAME#TRAIN,VAL, e.g. NAME#train[:90%],train[90%:]"


def parse_name(text: str) -> tuple[str, dict[str, str]]:
    """Parses `NAME#TRAIN,VAL`: the name, and an expression for `train` and for `val`.

    Without `#` there are no expressions.

    Raises:
        InputError: there are not two expressions.
    """
    name, mark, given = text.partition("#")
    expressions = given.split(",")
    if mark and len(expressions) != 2:
        raise InputError(
            f"config.data.name {text!r} does not say what train and val are; give {_NOTATION}"
        )
    return name, dict(zip(("train", "val"), expressions, strict=True)) if mark else {}


def part_of(
    split: str, expressions: Mapping[str, str], lengths: Mapping[str, int], name: str
) -> tuple[str, range]:
    """Returns which of the data's splits `train` or `val` is, and which images of it.

    Args:
        expressions: `SPLIT`, or a part such as `train[:90%]`, `train[-500:]`, as TFDS writes them.
            Without one, `val` is `validation`, `val`, `valid` or `test`, the first there is.
        lengths: the data's splits, and the number of images in each.
        name: of the data, for the errors.

    Raises:
        InputError: there is no such split, or the part is malformed or empty.
    """
    if not expressions:
        usual = next((one for one in _USUAL[split] if one in lengths), None)
        if usual is None:
            raise InputError(
                f"{name} has no split {' or '.join(_USUAL[split])}; it has {', '.join(lengths)}; "
                f"say what is train and what is val: {_NOTATION}"
            )
        return usual, range(lengths[usual])
    text = expressions[split].strip()
    bound = r"(-?\d+%?)?"
    match = re.fullmatch(rf"([^\[\]]+)(?:\[{bound}:{bound}\])?", text)
    if not match:
        raise InputError(f"config.data.name: {text!r} is not a part of a split; give {_NOTATION}")
    own, start, stop = match.groups()
    if own not in lengths:
        raise InputError(f"{name} has no split {own!r}; it has {', '.join(lengths)}")
    part = range(lengths[own])[_index(start, lengths[own]) : _index(stop, lengths[own])]
    if not part:
        raise InputError(f"{text} of {name} is empty; {own} has {lengths[own]} images")
    return own, part


def _index(bound: str | None, length: int) -> int | None:
    if bound is None:
        return None
    return round(int(bound[:-1]) * length / 100) if bound.endswith("%") else int(bound)
