"""Accuracy on corrupted images (ImageNet-C)."""

from pathlib import Path
from typing import Any

from aa_flax.data.folder import ImageFolder
from aa_flax.errors import InputError
from aa_flax.evaluation.accuracy import accuracy
from aa_flax.evaluation.consistency import consistency
from aa_flax.evaluation.corruptions import (
    ALEXNET_ERRORS,
    check_is_no_perturbations,
    check_same_classes,
    corruption_folders,
    corruption_summary,
    digest_of_folders,
)
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations, observe
from aa_flax.evaluation.views import Center, ShiftedPairs, Views
from aa_flax.runtime import progress_bar


class Corruptions(Measure):
    """Accuracy for each corruption and severity, and consistency where images have room for it."""

    options = (Option("corruptions", "a tree like ImageNet-C", None, Path),)
    columns = (
        Column(
            "mCE",
            ("mce",),
            note="mean error on corrupted images as a share of AlexNet's; less is better",
        ),
    )

    def settings(self, subject: Subject) -> Result:
        some = subject.settings
        return {
            "digest": digest_of_folders(_folders(subject)),
            "shift_range": some.shift_range,
            "passes": some.passes,
            "seed": some.seed,
        }

    def check(self, subject: Subject) -> None:
        for folder in _folders(subject).values():
            check_same_classes(folder, subject.source.class_names, subject.settings.class_order)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        found: dict[str, dict[str, Any]] = {}
        for title, folder in _folders(subject).items():
            name, _, severity = title.rpartition(" ")
            found.setdefault(name, {})[severity] = _at_severity(subject, folder, title)
        root = str(subject.options["corruptions"].absolute())
        return {"folder": root, **corruption_summary(found)}

    def line(self, result: Result) -> str:
        count = len(result["by_corruption"])
        line = f"{'corruptions':12} top-1 {result['mean_top1']:6.2f} % on average of "
        if result["mce"] is None:
            return f"{line}{count}"
        others, extra = count - len(ALEXNET_ERRORS), result.get("mean_top1_extra")
        apart = "" if extra is None else f" ({extra:.2f} % of {others} others)"
        return f"{line}{len(ALEXNET_ERRORS)}{apart}, mCE {result['mce']:.2f} %"


def _folders(subject: Subject) -> dict[str, Path]:
    """The folders of classes by corruption and severity: `fog 1`."""
    root = subject.options["corruptions"]
    check_is_no_perturbations(root, subject.source.class_names)
    return {
        f"{name} {severity}": folder
        for name, severities in corruption_folders(root).items()
        for severity, folder in severities.items()
    }


def _at_severity(subject: Subject, folder: Path, title: str) -> dict[str, Any]:
    """The accuracy at one severity of one corruption."""
    settings = subject.settings
    source = ImageFolder(str(folder.parent), folder.name, settings.class_order)
    if source.num_classes != subject.source.num_classes:
        raise InputError(
            f"{folder} has images of {source.num_classes} classes, the data has "
            f"{subject.source.num_classes}; give --config.data.class_order if some are left out"
        )
    size = settings.crop_size
    pairs = ShiftedPairs(size, settings.shift_range, settings.passes, settings.seed)
    with_pairs = min(source[0]["image"].size) >= pairs.needed_size
    views: dict[str, Views] = {"center": Center(size)}
    if with_pairs:
        views["shift"] = pairs
    seen = look_as_they_are(
        subject, source, views, crop=pairs.needed_size if with_pairs else size, title=title
    )
    found: dict[str, Any] = {**accuracy(seen["center"])}
    if with_pairs:
        agreed = consistency(seen["shift"])
        found |= {key: agreed[key] for key in ("consistency", "consistency_interval")}
    return found


def look_as_they_are(
    subject: Subject, source: ImageFolder, views: dict[str, Views], *, crop: int, title: str
) -> dict[str, Observations]:
    """What the net says of images that are cut to size already, so not resized.

    Raises:
        InputError: outputs that are not finite.
    """
    batches = subject.settings.replace(resize_size=0).batches(source, crop)
    with progress_bar(len(source), title) as bar:
        seen = observe(subject.predictor, batches, views, mesh=subject.mesh, progress=bar)
    for found in seen.values():
        found.check_finite()
    return seen
