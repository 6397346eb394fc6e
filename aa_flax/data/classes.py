"""Class names, and which logit each class has."""

import codecs
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from aa_flax.errors import InputError
from aa_flax.files import local_path

_MOST = 1_000_000  # classes


def imagenet_classes() -> list[str]:
    """Returns the WordNet ids of ImageNet's 1000 classes, in the order of the published logits."""
    return (Path(__file__).parent / "imagenet_classes.txt").read_text().split()


def imagenet_class_names() -> list[str]:
    """Returns the names of ImageNet's 1000 classes, in the order of the published models' logits.

    They are torchvision's (BSD 3-Clause, next to the file).

    Examples:
        >>> import aa_flax
        >>> aa_flax.imagenet_class_names()[:3]
        ['tench', 'goldfish', 'great white shark']
    """
    return read_names(Path(__file__).parent / "imagenet_class_names.txt")


def classes_in_order(class_order: str, found: Sequence[str], where: str) -> list[str]:
    """Returns the classes of the logits, in order, for a data set with the classes `found`.

    Args:
        class_order: "" or "sorted": those found. "imagenet": the thousand of ImageNet. Otherwise a
            text file, one class a line. Classes without images keep their logit.
        found: names, sorted.
        where: the data, for the errors.

    Raises:
        InputError: the order lacks a class; or, with "", the classes are a thousand, or named by
            WordNet ids, but not ImageNet's.
    """
    if class_order == "":
        _check_imagenet(found, where)
    if class_order in ("", "sorted"):
        return list(found)
    if class_order == "imagenet":
        order = imagenet_classes()
    else:
        path = local_path(class_order, "config.data.class_order")
        if not os.path.isfile(path):
            raise InputError(
                f"no file {path} for config.data.class_order; give a text file with one class a "
                "line, or imagenet, or sorted"
            )
        order = read_classes(path)
    if unknown := _without(found, order):
        raise InputError(
            f"{where} has {_some(unknown)} that config.data.class_order={class_order} does not "
            "list; add or remove them"
        )
    return order


def _check_imagenet(found: Sequence[str], where: str) -> None:
    """Data that looks like ImageNet must have the thousand classes of the published models."""
    expected = imagenet_classes()
    wordnet_ids = all(re.fullmatch(r"n\d{8}", name) for name in found)
    missing, other = _without(expected, found), _without(found, expected)
    if (wordnet_ids or len(found) == len(expected)) and (missing or other):
        raise InputError(
            f"{where} does not contain ImageNet's 1000 classes: {_some(missing)} missing, "
            f"{_some(other)} unknown; complete it, or say what its classes are: "
            "--config.data.class_order=imagenet (some of the 1000, for their 1000 logits), sorted "
            "(a logit for each class there is), or a file of class names"
        )


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    excluded = set(others)
    return [name for name in names if name not in excluded]


def _some(names: Sequence[str]) -> str:
    """Returns `2 classes (a, b)`; of many names, the first three."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} classes" + (f" ({shown})" if names else "")


def logits_of(names: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """Returns the position of each name in the order of the logits, int32."""
    logit_of = {name: i for i, name in enumerate(order)}
    return np.array([logit_of[name] for name in names], np.int32)


def declared_classes(
    names: Sequence[str], class_order: str, where: str
) -> tuple[list[str], np.ndarray]:
    """Orders the classes of data that declares the name of each label 0, 1, ...

    Args:
        class_order: see `classes_in_order`; "": the data's own order, but for ImageNet's thousand
            WordNet ids that of the published models.

    Returns:
        The classes of the logits in order; and the logit of each of the data's labels, int32.
    """
    if not class_order:
        class_order = "imagenet" if set(names) == set(imagenet_classes()) else "sorted"
    order = classes_in_order(class_order, names, where)
    return order, logits_of(names, order)


def numbered_classes(count: int, class_order: str, where: str) -> list[str]:
    """Names the classes of data with labels `0 .. count - 1`: numbers, or lines of `class_order`.

    More than a million classes are an InputError, and so is a class order with too few lines.

    Raises:
        InputError: the class order lists fewer; or there are more than a million.
    """
    if count > _MOST:
        raise InputError(f"{where} has a label {count - 1}; number its classes from 0 on")
    if class_order in ("", "sorted"):
        return [str(i) for i in range(count)]
    order = classes_in_order(class_order, [], where)
    if len(order) < count:
        raise InputError(
            f"{where} has labels up to {count - 1}, but config.data.class_order={class_order} "
            f"lists {len(order)} classes; complete it"
        )
    return order


def check_labels(labels: np.ndarray, num_classes: int, name: Callable[[int], str]) -> None:
    """Checks that labels are in `0 .. num_classes - 1`; `name(i)` names an image, for the error.

    Raises:
        InputError: names the first image with another label.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        first = int(wrong[0])
        others = f" (and {len(wrong) - 1} others)" if len(wrong) > 1 else ""
        raise InputError(
            f"{name(first)}{others} has label {labels[first]}, but labels are 0 to "
            f"{num_classes - 1}; give images of known classes (-1 often means that a test set's "
            "labels are withheld)"
        )


def check_classes_agree(
    classes: Mapping[str, Sequence[str]],
    advice: str = "make them the same, or give --config.data.class_order, a file of class names "
    "in the order of the logits",
) -> None:
    """Checks that a label means the same class everywhere, e.g. in training and in evaluation.

    Args:
        classes: names by number, by where they are from.
        advice: for the error.

    Raises:
        InputError: other classes, or the same in another order.
    """
    (where, expected), *others = ((key, list(map(str, names))) for key, names in classes.items())
    for other, found in others:
        if odd := sorted(set(expected) ^ set(found)):
            raise InputError(
                f"{where} and {other} have different classes: {', '.join(odd[:5])} only in one of "
                f"them; {advice}"
            )
        for number, (one, two) in enumerate(zip(expected, found, strict=True)):
            if one != two:
                raise InputError(
                    f"{where} and {other} number their classes differently: {number} is {one} in "
                    f"one and {two} in the other; {advice}"
                )


def first_repeated(names: Sequence[object]) -> tuple[str, int, int] | None:
    """Returns the first name that is repeated and its two positions; None: all names differ."""
    seen: dict[str, int] = {}
    for position, name in enumerate(map(str, names)):
        if (first := seen.setdefault(name, position)) != position:
            return name, first, position
    return None


def read_classes(path: Path) -> list[str]:
    """Reads a text file of classes, one a line, all different; see `read_names`.

    Raises:
        InputError: a line is empty or repeats another; or see `read_names`.
    """
    names = read_names(path)
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 1} is empty; name a class in each line")
    if repeated := first_repeated(names):
        name, first, second = repeated
        raise InputError(
            f"{path} names the class {name} twice, in lines {first + 1} and {second + 1}; give "
            "each class its own name"
        )
    return names


def read_names(path: Path) -> list[str]:
    """Reads the lines of a text file from any editor: UTF-8, or UTF-16 or 32 with a mark.

    Line ends may be those of Unix, Windows or old Macs. Empty lines at the end and spaces around a
    name are dropped.

    Raises:
        InputError: the file has another encoding or cannot be read.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    # UTF-32's mark begins with that of UTF-16, so it is first.
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((marks[mark] for mark in marks if encoded.startswith(mark)), "utf-8-sig")
    try:
        text = encoded.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not in UTF-8 ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise InputError(f"{path} is not a text in UTF-8; save it as UTF-8")
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())]
