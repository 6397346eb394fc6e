"""Flips of the top-1 class on perturbed clips (ImageNet-P)."""

from pathlib import Path

import numpy as np

from aa_flax.data.folder import ImageFolder, natural_key
from aa_flax.evaluation.corruptions import (
    check_is_no_corruptions,
    digest_of_folders,
    flip_rate,
    perturbation_folders,
    perturbation_summary,
    read_flip_rates,
)
from aa_flax.evaluation.measure import Measure, Option, Result, Subject
from aa_flax.evaluation.measures.corruptions import look_as_they_are
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.views import Center


class Perturbations(Measure):
    """How often the top-1 class changes from frame to frame; the mFR needs a reference."""

    options = (
        Option("perturbations", "a tree like ImageNet-P, of frames", None, Path),
        Option("flip_rates", "a reference's flip rates, for the mFR", None, Path),
    )

    def settings(self, subject: Subject) -> Result:
        return {"digest": digest_of_folders(_folders(subject)), "reference": _reference(subject)}

    def check(self, subject: Subject) -> None:
        reference = _reference(subject)
        perturbation_summary(dict.fromkeys(_folders(subject), 0.0), reference)

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
    """The flip rate of one perturbation, clips and frames in the natural order of their names."""
    source = ImageFolder(str(root), name, "sorted")  # labels do not matter here
    size = subject.settings.crop_size
    seen = look_as_they_are(subject, source, {"all": Center(size)}, crop=size, title=name)["all"]
    paths = [Path(source.name(int(i))) for i in seen.index]
    order = sorted(range(len(paths)), key=lambda i: _place(paths[i]))
    clips = [str(paths[i].parent) for i in order]
    return flip_rate(seen.predicted[np.array(order), 0], clips, noise="noise" in name)


def _place(path: Path) -> tuple:
    """Clip by clip, and within a clip frame by frame."""
    return natural_key(str(path.parent)), natural_key(path.name)
