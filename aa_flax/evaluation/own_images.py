"""The base of measures on the user's own images: options, class names, checks and figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from aa_flax.data.classes import imagenet_class_names, read_names
from aa_flax.data.pixels import ImageError, resized_size
from aa_flax.data.unlabelled import Given, Pictures
from aa_flax.errors import InputError
from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Option, Result, Subject
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.settings import Settings
from aa_flax.evaluation.stored import StoredMeasure
from aa_flax.files import local_path


@dataclass(frozen=True)
class PicturesOption(Option):
    """An option that is a path, or in Python the images themselves: arrays or PIL images."""

    kind: type = Path
    default: Any = None

    def value(self, given: Any) -> Path | Given | None:
        if given is None or isinstance(given, Given):
            return given
        if isinstance(given, str | Path):
            return local_path(given, f"--{self.name}")
        return Given(given)


class PicturesMeasure(StoredMeasure):
    """A measure of unlabelled images; its figures have the models that were given the same ones."""

    brings_images = True
    # Draws the arrays of each model, by its name, to a path, in some formats.
    plot: ClassVar[Callable[[Path, Mapping[str, Mapping[str, np.ndarray]], Sequence[str]], None]]
    # Numbers and facts that the models of one figure have in common, besides the images.
    alike: ClassVar[tuple[str, ...]]

    def check(self, subject: Subject) -> None:
        if subject.output is not None:
            super().check(subject)

    def store_and_plot(self, subject: Subject, arrays: dict[str, np.ndarray]) -> Result:
        return self.store(
            subject, arrays, lambda path: type(self).plot(path, {subject.name: arrays}, (".png",))
        )

    def groups(self, rows: Sequence[Row]) -> dict[str, list[Row]]:
        groups: dict[Any, list[Row]] = {}
        for row in rows:
            found = row.first(self.name)
            if found is not None and "file" in found:
                facts = {**row.facts, **found}
                key = tuple(facts.get(name) for name in ("digest", *self.alike))
                groups.setdefault(key, []).append(row)
        if len(groups) == 1:
            return {self.name: next(iter(groups.values()))}
        return {f"{self.name}_{i}": members for i, members in enumerate(groups.values(), 1)}

    def draw(self, path: Path, rows: Sequence[Row]) -> None:
        arrays = {row.title: row.arrays(self.name) for row in rows}
        type(self).plot(path, arrays, plots.ALL_FORMATS)


WITHIN = Option(  # one option, which the measures have in common
    "within", "--images, --drift: largest shift in pixels on each axis", 3, int
)
CLASS_NAMES = Option(  # as well
    "class_names",
    "names of classes in figures and texts: imagenet, or a file with one a line",
    None,
    str,
)


def class_namer(subject: Subject, num_classes: int) -> Callable[[int], str]:
    """Returns a function from a class index to its name: `class 17` if no names were given."""
    given = subject.options["class_names"]
    if not given:
        return lambda i: f"class {i}"
    file = local_path(given, "--class_names")
    names = imagenet_class_names() if given == "imagenet" else read_names(file)
    if len(names) != num_classes:
        raise InputError(
            f"--class_names {given} has {len(names)} names, but {subject.name} gives {num_classes} "
            "logits; give a file with one name a line, in the order of the logits"
        )
    return lambda i: names[i]


def check_room(pictures: Pictures, settings: Settings) -> None:
    """Raises an InputError if an image is smaller than the crops, or unreadable and not skipped."""
    for i in range(len(pictures)):
        try:
            size = pictures.size(i)
        except ImageError as error:
            if settings.on_error == "skip":
                continue
            raise error.skippable() from error
        check_size_of(pictures.name(i), size, settings, settings.image_size)


def check_size_of(name: str, size: tuple[int, int], settings: Settings, needed: int) -> None:
    """Raises an InputError if a square of `needed` pixels does not fit the resized image."""
    if min(resized_size(size, settings.resize_size)) < needed:
        width, height = size
        resized = f", resized to {settings.resize_size}" if settings.resize_size else ""
        raise InputError(
            f"{name} has {width} x {height} pixels{resized}, but a square of {needed} is cut from "
            "it, which would have black borders; change --config.data.resize_size, image_size or "
            "crop_size"
        )


def check_one_process(name: str) -> None:
    """Raises an InputError if several hosts evaluate together."""
    if jax.process_count() > 1:
        raise InputError(f"--{name} runs in one process; leave out --distributed, --coordinator")
