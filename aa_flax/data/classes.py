"""Which class each logit stands for."""

import re
from collections.abc import Sequence
from pathlib import Path

from aa_flax.errors import InputError


def imagenet_classes() -> list[str]:
    """The WordNet ids of ImageNet's 1000 classes, in the order of the published nets' logits."""
    return (Path(__file__).parent / "imagenet_classes.txt").read_text().split()


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
    order = imagenet_classes() if class_order == "imagenet" else _read_order(Path(class_order))
    unknown = [name for name in found if name not in set(order)]
    if unknown:
        raise InputError(
            f"{where} has {_some(unknown)} that config.data.class_order={class_order} does not "
            "list; add or remove them"
        )
    return order


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


def _read_order(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(
            f"no file {path} for config.data.class_order; give a text file with one class a line, "
            "or imagenet, or sorted"
        )
    order = path.read_text().splitlines()
    if len(set(order)) != len(order) or not all(order):
        raise InputError(f"{path} names a class twice or has an empty line; give each class once")
    return order


def _some(names: Sequence[str]) -> str:
    """`2 classes (a, b)`, of many the first three."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} classes" + (f" ({shown})" if names else "")
