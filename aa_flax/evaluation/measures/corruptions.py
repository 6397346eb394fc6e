"""Accuracy on corrupted images (ImageNet-C).

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019. The images are already cut to size, so they are neither resized nor, at
the published 224 pixels, cropped.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from aa_flax.data.cache import digest, file_digest
from aa_flax.data.classes import check_classes_agree, imagenet_classes
from aa_flax.data.folder import ImageFolder, class_folders, load_index
from aa_flax.errors import InputError
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.measures.accuracy import accuracy
from aa_flax.evaluation.measures.consistency import consistency
from aa_flax.evaluation.observe import Observations, observe_source
from aa_flax.evaluation.views import Center, ShiftedPairs, Views

# AlexNet's top-1 error in percent on each corruption of ImageNet-C, averaged over the five
# severities: the published denominators of the mCE.
ALEXNET_ERRORS: Mapping[str, float] = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}
SEVERITIES = ("1", "2", "3", "4", "5")
_SAMPLED = 16  # images per folder whose bytes are hashed


def corruption_folders(root: Path) -> dict[str, dict[str, Path]]:
    """Finds folders of classes by corruption and severity: `<corruption>/<severity>/<class>/*`.

    Corruptions may be one level deeper, as in the published archives (`noise/gaussian_noise/1/`).
    A folder named 1 to 5 without subfolders is a class, not a severity.

    Raises:
        InputError: no such folder, or none in it.
    """
    if not root.is_dir():
        raise InputError(
            f"no folder {root}; it has to contain <corruption>/<severity>/<class>/*.JPEG"
        )
    found: dict[str, dict[str, Path]] = {}
    for top in subfolders(root):
        for corruption in [top] if _severities(top) else subfolders(top):
            if there := _severities(corruption):
                found.setdefault(corruption.name, {}).update(there)
    if not found:
        raise InputError(f"{root} contains no <corruption>/<severity>/<class>/*, severity 1 to 5")
    return found


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _severities(folder: Path) -> dict[str, Path]:
    inside = [path for path in subfolders(folder) if path.name in SEVERITIES]
    return {path.name: path for path in inside if subfolders(path)}


def check_is_no_perturbations(root: Path, class_names: Sequence[str]) -> None:
    """Raises an InputError for a tree like ImageNet-P: `<perturbation>/<class>/<clip>/<frame>`."""
    if not root.is_dir():
        return
    known = set(class_names)
    for folder in subfolders(root):
        classes = subfolders(folder)
        clips = [clip for one in classes for clip in subfolders(one)]
        if {path.name for path in classes} <= known and not {path.name for path in clips} <= known:
            raise InputError(
                f"{root} looks like ImageNet-P ({clips[0]} is not a class); give it as "
                "--perturbations"
            )


def check_same_classes(folder: Path, class_names: Sequence[str], class_order: str) -> None:
    """Raises an InputError if the class folders do not match the classes of the data.

    With a `config.data.class_order`, some classes may be missing.
    """
    found, known = class_folders(folder), list(map(str, class_names))
    unknown = sorted(set(found) - set(known))
    if unknown and found != imagenet_classes():  # whose order is known, whatever the names
        raise InputError(
            f"{folder} has classes that the data does not have: {', '.join(unknown[:5])}; remove "
            "or rename them"
        )
    if class_order not in ("", "sorted"):
        return
    if len(found) != len(known):
        raise InputError(
            f"{folder} has {len(found)} classes, the model {len(known)}; give "
            "--config.data.class_order if some are missing"
        )
    if not unknown:
        check_classes_agree({str(folder): found, "the data": known})


def digest_of_folders(folders: Mapping[str, Path]) -> str:
    """Returns a hash of the images in folders of class folders, independent of their location.

    It covers the names of all images, and the bytes of 16 in each folder: reading millions would
    take as long as evaluating them.
    """
    parts = []
    for name, folder in folders.items():
        index = load_index(folder)
        count = len(index.ends)
        some = range(0, count, -(-count // _SAMPLED) or 1)
        images = []
        for path in (folder / index.path(i) for i in some):
            images.append("")  # of an image that cannot be read, which is reported or skipped
            with suppress(OSError):
                images[-1] = file_digest(path) if path.is_file() else ""
        parts += [[name, *index.classes], index.class_of, index.paths, images]
    return digest(*parts)


def corruption_summary(
    per_severity: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Summarises the fifteen corruptions of the benchmark, if all are complete, and others.

    Without all fifteen, `mean_top1` is over those there are, without `mce` (None).

    Args:
        per_severity: results with `top1` in percent by corruption and severity.
    """
    found: dict[str, Any] = {}
    for name, severities in per_severity.items():
        error = fmean(100 - result["top1"] for result in severities.values())
        found[name] = {"error": error, "severities": dict(severities)}
        if name in ALEXNET_ERRORS and set(severities) == set(SEVERITIES):
            found[name]["ce"] = 100 * error / ALEXNET_ERRORS[name]  # in percent of AlexNet's
    complete = [found[name]["ce"] for name in ALEXNET_ERRORS if "ce" in found.get(name, {})]
    whole = len(complete) == len(ALEXNET_ERRORS)
    extra = [name for name in found if whole and name not in ALEXNET_ERRORS]
    return {
        "mean_top1": fmean(100 - found[name]["error"] for name in found if name not in extra),
        "mean_top1_extra": fmean(100 - found[name]["error"] for name in extra) if extra else None,
        "mce": fmean(complete) if whole else None,
        "by_corruption": found,
    }


class Corruptions(Measure):
    """Accuracy for each corruption and severity, and consistency if images are large enough."""

    options = (Option("corruptions", "a tree like ImageNet-C", None, Path),)
    columns = (
        Column(
            "mCE",
            ("mce",),
            note="mean error on corrupted images as a fraction of AlexNet's; less is better",
        ),
    )

    def settings(self, subject: Subject) -> Result:
        return {"digest": digest_of_folders(_folders(subject)), **subject.settings.of_pairs()}

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
    """Returns the folders of classes by corruption and severity, e.g. `fog 1`."""
    root = subject.options["corruptions"]
    check_is_no_perturbations(root, subject.source.class_names)
    return {
        f"{name} {severity}": folder
        for name, severities in corruption_folders(root).items()
        for severity, folder in severities.items()
    }


def _at_severity(subject: Subject, folder: Path, title: str) -> dict[str, Any]:
    """Evaluates one severity of one corruption."""
    settings = subject.settings
    source = ImageFolder(str(folder.parent), folder.name, settings.class_order)
    if source.num_classes != subject.source.num_classes:
        raise InputError(
            f"{folder} has images of {source.num_classes} classes, the data has "
            f"{subject.source.num_classes}; give --config.data.class_order if some are missing"
        )
    views: dict[str, Views] = {"center": Center(settings.crop_size)}
    pairs = settings.to(ShiftedPairs)
    if min(source[0]["image"].size) >= pairs.needed_size:
        views["shift"] = pairs
    seen = observe_unresized(subject, source, views, title)
    found: dict[str, Any] = {**accuracy(seen["center"])}
    if "shift" in seen:
        agreed = consistency(seen["shift"])
        found |= {key: agreed[key] for key in ("consistency", "consistency_interval")}
    return found


def observe_unresized(
    subject: Subject, source: ImageFolder, views: dict[str, Views], title: str
) -> dict[str, Observations]:
    """Observes images that are already cut to size, without resizing them."""
    settings = replace(subject.settings, resize_size=0)
    crop = max(some.needed_size for some in views.values())
    seen = observe_source(
        subject.predictor, source, settings, views, crop=crop, mesh=subject.mesh, title=title
    )
    for found in seen.values():
        found.check_finite()
    return seen
