"""Robustness to corruptions (ImageNet-C) and to perturbations over time (ImageNet-P).

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019. The trees hold images that are cut to size already, so they are neither
resized nor, at the published 224 pixels, cropped.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from aa_flax.data.cache import digest, file_digest
from aa_flax.data.classes import check_classes_agree, imagenet_classes, read_names
from aa_flax.data.folder import class_folders, load_index
from aa_flax.errors import InputError

# AlexNet's top-1 error in percent on each corruption of ImageNet-C, mean over the five severities:
# the published denominators of the mCE.
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
_SAMPLED = 16  # images of a folder whose bytes are compared


def corruption_folders(root: Path) -> dict[str, dict[str, Path]]:
    """Folders of classes by corruption and severity: `<corruption>/<severity>/<class>/*`.

    The corruptions may lie deeper, as in the published archives (`noise/gaussian_noise/1/...`).
    A folder named 1 to 5 that holds no folders is a class, not a severity.

    Raises:
        InputError: no such folder, or none in it.
    """
    if not root.is_dir():
        raise InputError(f"no folder {root}; it has to hold <corruption>/<severity>/<class>/*.JPEG")
    found: dict[str, dict[str, Path]] = {}
    for top in _folders(root):
        severities = _severities(top)
        deeper = [top] if severities else _folders(top)
        for corruption in deeper:
            if there := severities or _severities(corruption):
                found.setdefault(corruption.name, {}).update(there)
    if not found:
        raise InputError(f"{root} holds no <corruption>/<severity>/<class>/*, severity 1 to 5")
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _severities(folder: Path) -> dict[str, Path]:
    return {
        path.name: path for path in _folders(folder) if path.name in SEVERITIES and _folders(path)
    }


def check_is_no_perturbations(root: Path, class_names: Sequence[str]) -> None:
    """Raises an InputError for a tree like ImageNet-P: `<perturbation>/<class>/<clip>/<frame>`."""
    if not root.is_dir():
        return
    for folder in _folders(root):
        classes = _folders(folder)
        clips = [clip for one in classes for clip in _folders(one)]
        if (
            classes
            and clips
            and {path.name for path in classes} <= set(class_names)
            and not {path.name for path in clips} <= set(class_names)
        ):
            raise InputError(
                f"{root} looks like ImageNet-P ({clips[0]} is no class); give it as --perturbations"
            )


def check_is_no_corruptions(root: Path, class_names: Sequence[str]) -> None:
    """Raises an InputError for a tree like ImageNet-C, whose images would be taken for frames."""
    try:
        found = corruption_folders(root)
    except InputError:
        return
    folders = [folder for severities in found.values() for folder in severities.values()]
    if any(folder.name not in set(class_names) for folder in folders):
        raise InputError(
            f"{root} looks like ImageNet-C ({folders[0]} is a severity); give it as --corruptions"
        )


def check_same_classes(folder: Path, class_names: Sequence[str], class_order: str) -> None:
    """Raises an InputError if the class folders cannot be those of the data.

    Args:
        class_order: `config.data.class_order`; with one, some classes may be left out.
    """
    found, known = class_folders(folder), list(map(str, class_names))
    unknown = sorted(set(found) - set(known))
    if unknown and found != imagenet_classes():  # whose order is known, whatever they are called
        raise InputError(
            f"{folder} has classes that the data does not have: {', '.join(unknown[:5])}; remove "
            "or rename them"
        )
    if class_order not in ("", "sorted"):
        return
    if len(found) != len(known):
        raise InputError(
            f"{folder} has {len(found)} classes, the net {len(known)}; give "
            "--config.data.class_order if some are left out"
        )
    if not unknown:
        check_classes_agree({str(folder): found, "the data": known})


def digest_of_folders(folders: Mapping[str, Path]) -> str:
    """Returns a hash of the images in folders of class folders, wherever these are.

    It covers the names of all images, and the bytes of 16 in each folder: to read millions would
    take as long as to measure them.

    Args:
        folders: by what they are called in the results.
    """
    parts = []
    for name, folder in folders.items():
        index = load_index(folder)
        count = len(index.ends)
        some = range(0, count, -(-count // _SAMPLED) or 1)
        images = [_digest_of_image(folder / index.path(i)) for i in some]
        parts += [[name, *index.classes], index.class_of, index.paths, images]
    return digest(*parts)


def _digest_of_image(path: Path) -> str:
    """Nothing of what cannot be read: whoever measures it says so, or skips it."""
    try:
        return file_digest(path) if path.is_file() else ""
    except OSError:
        return ""


def corruption_summary(
    per_severity: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Summarises corruptions: those of the benchmark, where all fifteen are complete, and others.

    Args:
        per_severity: results with `top1` in percent by corruption and severity.

    Returns:
        `mean_top1` over the fifteen and `mean_top1_extra` over the others, or None; without all of
        the fifteen, `mean_top1` over all there are. By corruption its `severities`, `error` (mean
        over them, in percent) and, with all five of a known corruption, `ce`: the error as a
        percentage of AlexNet's; and `mce`, the mean of those over the fifteen, or None.
    """
    found: dict[str, Any] = {}
    for name, severities in per_severity.items():
        error = float(np.mean([100 - result["top1"] for result in severities.values()]))
        found[name] = {"error": error, "severities": dict(severities)}
        if name in ALEXNET_ERRORS and set(severities) == set(SEVERITIES):
            found[name]["ce"] = 100 * error / ALEXNET_ERRORS[name]
    complete = [found[name]["ce"] for name in ALEXNET_ERRORS if "ce" in found.get(name, {})]
    whole = len(complete) == len(ALEXNET_ERRORS)
    extra = [name for name in found if whole and name not in ALEXNET_ERRORS]
    return {
        "mean_top1": _mean(100 - found[name]["error"] for name in found if name not in extra),
        "mean_top1_extra": _mean(100 - found[name]["error"] for name in extra) if extra else None,
        "mce": _mean(complete) if whole else None,
        "by_corruption": found,
    }


def flip_rate(predicted: Int[np.ndarray, " n"], clips: list[str], *, noise: bool) -> float:
    """How often the top-1 class changes within a clip, in percent, mean over the clips.

    Args:
        predicted: the class of each frame, clip after clip, frames in order.
        clips: the clip of each frame.
        noise: compare each frame with the clip's first (frames of noise have no order), not with
            the one before.

    Raises:
        InputError: a clip of fewer than two frames.
    """
    names, starts = np.unique(clips, return_index=True)
    rates = []
    for name, frames in zip(
        names[np.argsort(starts)], np.split(predicted, np.sort(starts)[1:]), strict=True
    ):
        if len(frames) < 2:
            raise InputError(f"the clip {name} has one frame; a flip needs two or more")
        before = frames[0] if noise else frames[:-1]
        rates.append(np.mean(frames[1:] != before))
    return 100 * float(np.mean(rates))


def perturbation_summary(
    rates: Mapping[str, float], reference: Mapping[str, float] | None
) -> dict[str, Any]:
    """Flip rates, and the mFR: their mean in percent of the reference's (AlexNet's).

    Raises:
        InputError: a perturbation that the reference does not list.
    """
    result: dict[str, Any] = {"flip_rates": dict(rates), "mean_flip_rate": _mean(rates.values())}
    if reference is not None:
        if missing := sorted(rates.keys() - reference.keys()):
            raise InputError(f"the table of flip rates lacks {', '.join(missing)}; add them")
        result["mfr"] = _mean(100 * rates[name] / reference[name] for name in rates)
    return result


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def read_flip_rates(path: Path) -> dict[str, float]:
    """A reference net's flip rates in percent: a text file of lines `perturbation<tab>percent`.

    Raises:
        InputError: no such file, or a line that is something else.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; give lines of perturbation<tab>flip rate in percent")
    rates = {}
    for line in read_names(path):
        name, _, rate = line.partition("\t")
        try:
            value = float(rate)
        except ValueError:
            value = 0.0
        if name in rates or not 0 < value <= 100:
            raise InputError(
                f"{path}: {line!r:.99} is not perturbation<tab>percent, above 0, each once"
            )
        rates[name] = value
    return rates


def perturbation_folders(root: Path) -> list[Path]:
    """Folders `<perturbation>` of `<perturbation>/<class>/<clip>/<frame>`.

    Raises:
        InputError: no such folder, none in it, or clips that are films instead of frames.
    """
    if not root.is_dir():
        raise InputError(f"no folder {root}; it has to hold <perturbation>/<class>/<clip>/<frame>")
    if films := next(root.glob("*/*/*.mp4"), None):
        raise InputError(
            f"{films} is a film; write its frames to a folder first, e.g. ffmpeg -i clip.mp4 "
            "clip/%04d.png"
        )
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
    if not folders:
        raise InputError(f"{root} holds no <perturbation>/<class>/<clip>/<frame>")
    return folders
