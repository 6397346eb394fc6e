"""Flips of the top-1 class on perturbed clips (ImageNet-P).

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019. As with ImageNet-C, images are already cut to size.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from aa_flax.data.classes import read_names
from aa_flax.data.folder import ImageFolder, natural_key
from aa_flax.errors import InputError
from aa_flax.evaluation.measure import Measure, Option, Result, Subject
from aa_flax.evaluation.measures.corruptions import (
    corruption_folders,
    digest_of_folders,
    observe_unresized,
    subfolders,
)
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.views import Center


def check_is_no_corruptions(root: Path, class_names: Sequence[str]) -> None:
    """Raises an InputError for a tree like ImageNet-C, whose images would be read as frames."""
    folders: list[Path] = []
    with suppress(InputError):
        found = corruption_folders(root)
        folders = [folder for severities in found.values() for folder in severities.values()]
    if any(folder.name not in set(class_names) for folder in folders):
        raise InputError(
            f"{root} looks like ImageNet-C ({folders[0]} is a severity); give it as --corruptions"
        )


def flip_rate(predicted: Int[np.ndarray, " n"], clips: list[str], *, noise: bool) -> float:
    """Computes how often the top-1 class changes within a clip, in percent, mean over the clips.

    Args:
        predicted: the class of each frame, clip after clip, frames in order.
        clips: the clip of each frame.
        noise: compare each frame with the clip's first (frames of noise have no order) instead of
            with the one before.

    Raises:
        InputError: a clip of fewer than two frames.
    """
    starts = np.sort(np.unique(clips, return_index=True)[1])
    rates = []
    for start, frames in zip(starts, np.split(predicted, starts[1:]), strict=True):
        if len(frames) < 2:
            raise InputError(f"the clip {clips[start]} has one frame; a flip needs two or more")
        before = frames[0] if noise else frames[:-1]
        rates.append(np.mean(frames[1:] != before))
    return 100 * float(np.mean(rates))


def perturbation_summary(
    rates: Mapping[str, float], reference: Mapping[str, float] | None
) -> dict[str, Any]:
    """Returns flip rates and the mFR: their mean in percent of the reference's (AlexNet's).

    Raises:
        InputError: a perturbation that the reference does not list.
    """
    mean = float(np.mean([*rates.values()]))
    result: dict[str, Any] = {"flip_rates": dict(rates), "mean_flip_rate": mean}
    if reference is not None:
        if missing := sorted(rates.keys() - reference.keys()):
            raise InputError(f"the table of flip rates lacks {', '.join(missing)}; add them")
        result["mfr"] = float(np.mean([100 * rates[name] / reference[name] for name in rates]))
    return result


def read_flip_rates(path: Path) -> dict[str, float]:
    """Reads a reference model's flip rates from lines `perturbation<tab>percent`.

    Raises:
        InputError: no such file, or another line.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; give lines of perturbation<tab>flip rate in percent")
    rates: dict[str, float] = {}
    for line in read_names(path):
        name, _, rate = line.partition("\t")
        value = 0.0
        with suppress(ValueError):
            value = float(rate)
        if name in rates or not 0 < value <= 100:
            raise InputError(
                f"{path}: {line!r:.99} is not perturbation<tab>percent, above 0, each once"
            )
        rates[name] = value
    return rates


def perturbation_folders(root: Path) -> list[Path]:
    """Finds the folders `<perturbation>` of `<perturbation>/<class>/<clip>/<frame>`.

    Raises:
        InputError: no such folder, none in it, or videos instead of folders of frames.
    """
    if not root.is_dir():
        raise InputError(
            f"no folder {root}; it has to contain <perturbation>/<class>/<clip>/<frame>"
        )
    if video := next(root.glob("*/*/*.mp4"), None):
        raise InputError(
            f"{video} is a video; write its frames to a folder first, e.g. ffmpeg -i clip.mp4 "
            "clip/%04d.png"
        )
    if not (folders := subfolders(root)):
        raise InputError(f"{root} contains no <perturbation>/<class>/<clip>/<frame>")
    return folders


class Perturbations(Measure):
    """Fraction of frames at which the top-1 class changes; the mFR needs a reference."""

    options = (
        Option("perturbations", "a tree like ImageNet-P, of frames", None, Path),
        Option("flip_rates", "a reference's flip rates, for the mFR", None, Path),
    )

    def settings(self, subject: Subject) -> Result:
        return {"digest": digest_of_folders(_folders(subject)), "reference": _reference(subject)}

    def check(self, subject: Subject) -> None:
        perturbation_summary(dict.fromkeys(_folders(subject), 0.0), _reference(subject))

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        root = subject.options["perturbations"]
        rates = {name: _flip_rate(subject, root, name) for name in _folders(subject)}
        return {"folder": str(root.absolute()), **perturbation_summary(rates, _reference(subject))}

    def line(self, result: Result) -> str:
        mfr = f", mFR {result['mfr']:.2f} %" if "mfr" in result else ""
        return f"{'perturbed':12} flips {result['mean_flip_rate']:6.2f} %{mfr}"


def _folders(subject: Subject) -> dict[str, Path]:
    root = subject.options["perturbations"]
    found = {folder.name: folder for folder in perturbation_folders(root)}
    check_is_no_corruptions(root, subject.source.class_names)
    return found


def _reference(subject: Subject) -> dict[str, float] | None:
    path = subject.options["flip_rates"]
    return None if path is None else read_flip_rates(path)


def _flip_rate(subject: Subject, root: Path, name: str) -> float:
    """Computes the flip rate of one perturbation, clips and frames in natural order of names."""
    source = ImageFolder(str(root), name, "sorted")  # labels do not matter here
    seen = observe_unresized(subject, source, {"all": Center(subject.settings.crop_size)}, name)
    paths = [Path(source.name(int(i))) for i in seen["all"].index]
    order = sorted(range(len(paths)), key=lambda i: _natural_order(paths[i]))
    clips = [str(paths[i].parent) for i in order]
    return flip_rate(seen["all"].predicted[order, 0], clips, noise="noise" in name)


def _natural_order(path: Path) -> tuple:
    """Sorts clip by clip, and frames within a clip."""
    return natural_key(str(path.parent)), natural_key(path.name)
