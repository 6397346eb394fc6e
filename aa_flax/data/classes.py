"""Which class each logit stands for."""

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
    """The WordNet ids of ImageNet's 1000 classes, in the order of the published nets' logits."""
    return (Path(__file__).parent / "imagenet_classes.txt").read_text().split()


def imagenet_class_names() -> list[str]:
    """What ImageNet's 1000 classes are called, in the order of the published nets' logits.

    The names are torchvision's (BSD 3-Clause, beside the file).
    """
    return read_names(Path(__file__).parent / "imagenet_class_names.txt")


def classes_in_order(class_order: str, found: Sequence[str], where: str) -> list[str]:
    """The classes of the logits, in order, for a data set with the classes `found`.

    Args:
        class_order: "" or "sorted": those found. "imagenet": the thousand of ImageNet. Otherwise a
            text file, one class a line. Classes of which there are no images keep their logit.
        found: names, sorted.
        where: of the data, for the errors.

    Raises:
        InputError: classes that are not in the order; or, with "", a thousand classes, or any
            number named by WordNet ids, that are not ImageNet's.
    """
    if class_order in ("", "sorted"):
        if not class_order:
            _check_imagenet(found, where)
        return list(found)
    order = imagenet_classes() if class_order == "imagenet" else _read_order(class_order)
    unknown = [name for name in found if name not in set(order)]
    if unknown:
        raise InputError(
            f"{where} has {_some(unknown)} that config.data.class_order={class_order} does not "
            "list; add or remove them"
        )
    return order


def declared_classes(
    names: Sequence[str], class_order: str, where: str
) -> tuple[list[str], np.ndarray]:
    """For data that says itself which class each of its labels is.

    Args:
        names: of labels 0, 1, ...
        class_order: see `classes_in_order`; "": the data's own order, but for ImageNet's thousand
            WordNet ids that of the published nets.

    Returns:
        The classes of the logits in order; and the logit of each of the data's labels, int32.
    """
    if not class_order:
        class_order = "imagenet" if set(names) == set(imagenet_classes()) else "sorted"
    order = classes_in_order(class_order, names, where)
    place = {name: i for i, name in enumerate(order)}
    return order, np.array([place[name] for name in names], np.int32)


def numbered_classes(count: int, class_order: str, where: str) -> list[str]:
    """For data with labels `0 .. count - 1` and no names: numbers, or the lines of `class_order`.

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
    """Labels must be classes: `0 .. num_classes - 1`.

    Args:
        name: of the i-th image, for the error.

    Raises:
        InputError: the first that is not, with its image.
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


def _check_imagenet(found: Sequence[str], where: str) -> None:
    """What looks like ImageNet must be the thousand classes that the published nets know."""
    expected = imagenet_classes()
    named_alike = all(re.fullmatch(r"n\d{8}", name) for name in found)
    if not named_alike and len(found) != len(expected):
        return
    missing = [name for name in expected if name not in set(found)]
    other = [name for name in found if name not in set(expected)]
    if missing or other:
        raise InputError(
            f"{where} does not hold ImageNet's 1000 classes: {_some(missing)} missing, "
            f"{_some(other)} unknown; complete it, or say what its classes are: "
            "--config.data.class_order=imagenet (some of the 1000, for their 1000 logits), sorted "
            "(a logit for each class there is), or a file of class names"
        )


def _read_order(class_order: str) -> list[str]:
    path = local_path(class_order, "config.data.class_order")
    if not os.path.isfile(path):
        raise InputError(
            f"no file {path} for config.data.class_order; give a text file with one class a line, "
            "or imagenet, or sorted"
        )
    return read_classes(path)


def read_classes(path: Path) -> list[str]:
    """Reads a text file of classes, one a line: see `read_names`.

    Raises:
        InputError: a line that is empty, or that another repeats; or see `read_names`.
    """
    names = read_names(path)
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 1} is empty; name a class in each line")
    if repeated := named_twice(names):
        name, first, second = repeated
        raise InputError(
            f"{path} names the class {name} twice, in lines {first + 1} and {second + 1}; give "
            "each class its own name"
        )
    return names


def named_twice(names: Sequence[object]) -> tuple[str, int, int] | None:
    """Returns the first name that is repeated and its two positions; None: all names differ."""
    places: dict[str, int] = {}
    for place, name in enumerate(map(str, names)):
        if (first := places.setdefault(name, place)) != place:
            return name, first, place
    return None


def check_classes_agree(
    classes: Mapping[str, Sequence[str]],
    advice: str = "make them the same, or give --config.data.class_order, a file of class names "
    "in the order of the logits",
) -> None:
    """Checks that a label means one class everywhere, in training and in evaluation say.

    Args:
        classes: names by number, by where they are from.
        advice: for the error.

    Raises:
        InputError: other classes, or the same in another order.
    """
    (where, expected), *others = ((key, list(map(str, names))) for key, names in classes.items())
    for other, found in others:
        odd = sorted(set(expected) ^ set(found))
        if odd:
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


def read_names(path: Path) -> list[str]:
    """The lines of a text file, as any editor writes it: UTF-8, or UTF-16 or 32 with a mark.

    Line ends may be those of Unix, Windows or old Macs; empty lines at the end, and spaces around
    a name, do not count.

    Raises:
        InputError: another encoding, or a file that cannot be read.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
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


def _some(names: Sequence[str]) -> str:
    """`2 classes (a, b)`, of many the first three."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} classes" + (f" ({shown})" if names else "")
