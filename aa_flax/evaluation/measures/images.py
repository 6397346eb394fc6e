"""How steady a net is on unlabelled images of one's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.data.pixels import center_image
from aa_flax.data.unlabelled import Pictures
from aa_flax.errors import integer
from aa_flax.evaluation.measure import Column, Option, Result, Subject
from aa_flax.evaluation.measures.pairs import random_pairs
from aa_flax.evaluation.observe import Observations, observe
from aa_flax.evaluation.own_images import (
    CLASS_NAMES,
    PicturesMeasure,
    PicturesOption,
    check_room,
    class_namer,
)
from aa_flax.evaluation.plots.own_images import class_names_in, plot_least_stable
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.stability import least_stable_first, stability, worst_shift
from aa_flax.evaluation.text import markdown, with_interval
from aa_flax.evaluation.views import Around, Center, ShiftedPairs, Views, check_size
from aa_flax.runtime import progress_bar


class Images(PicturesMeasure):
    """Consistency, change of probability and worst case of a folder of images without labels.

    What a net says of the unshifted centre crop stands in for the true class; see
    `aa_flax.evaluation.stability.Stability`.
    """

    options = (
        PicturesOption("images", "how steady the net is on a folder of unlabelled images"),
        Option("within", "--images: shifts of up to so many pixels on each axis", 3, int),
        Option("least_stable", "--images: how many of the least stable are shown", 4, int),
        CLASS_NAMES,
    )
    columns = (
        Column(
            "own images: consistency",
            ("consistency",),
            interval="consistency_interval",
            note="share of pairs of crops of the unlabelled images, at two random offsets, that "
            "get the same class",
        ),
        Column(
            "worst case of own images",
            ("worst_case",),
            note="share of the unlabelled images that keep the class of their centre crop at every "
            "shift within a few pixels",
        ),
        Column(
            "change of P",
            ("probability_change",),
            note="mean change of that class's probability at those shifts, in percentage points",
        ),
    )
    plot = staticmethod(plot_least_stable)
    alike = ("within", "crop")

    def settings(self, subject: Subject) -> Result:
        options = {name: subject.options[name] for name in ("within", "class_names")}
        shown = {"shown": subject.options["least_stable"]}
        pairs = random_pairs(subject.settings)
        pairs |= {"shift_range": subject.settings.shift_range}
        return {**_pictures(subject).described(), **options, **shown, **pairs}

    def check(self, subject: Subject) -> None:
        for name in ("within", "least_stable"):
            integer(f"--{name}", subject.options[name], least=1)
        super().check(subject)
        size = subject.settings.image_size
        for views in _views(subject).values():
            check_size(views, size, size)
        check_room(_pictures(subject), subject.settings)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        pictures = _pictures(subject)
        classes = subject.predictor.num_classes(subject.settings.crop_size)
        name_of = class_namer(subject, classes)
        own = _look(subject, pictures, {"own": Center(subject.settings.crop_size)})["own"]
        own.check_finite()
        labels = np.zeros(len(pictures), np.int64)
        labels[own.index] = own.predicted[:, 0]
        pictures.label(labels, classes)
        found = _look(subject, pictures, _views(subject))
        result: Result = {**stability(found["pairs"], found["around"])}
        arrays = _arrays(found["around"], pictures, subject, name_of)
        result["least_stable"] = [_told(arrays, i) for i in arrays["shown"]]
        result["lost"] = pictures.log_lost()
        skipped = np.setdiff1d(np.arange(len(pictures)), own.index)
        result["skipped"] = [pictures.name(int(i)) for i in skipped]
        return result | self.store(subject, arrays)

    def line(self, result: Result) -> str:
        within = result["within"]
        return (
            f"{'own images':12} consistency "
            f"{with_interval(result['consistency'], result['consistency_interval'])}   "
            f"within {within} pixels: same class at "
            f"{result['same_class']:.2f} % of shifts, at all of them {result['worst_case']:.2f} % "
            f"of {result['num_images']} images, change of P {result['probability_change']:.2f} %, "
            f"at worst {result['probability_change_worst']:.2f} %"
        )

    def section(self, rows: Sequence[Row]) -> str:
        parts = []
        for nets in self.groups(rows):
            found = [row.first("images") or {} for row in nets]
            where = found[0].get("folder", f"{found[0]['num_images']} images")
            heads = ["net", "least stable images", "class there", "elsewhere", "same class"]
            lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
            for row, result in zip(nets, found, strict=True):
                lines += [_line(row.title, one) for one in result["least_stable"]]
            about = (
                f"Of {markdown(where)}, with shifts within {found[0]['within']} pixels on each "
                "axis."
            )
            parts += ["## Own images", about, "\n".join(lines)]
        return "\n\n".join(parts)


def _pictures(subject: Subject) -> Pictures:
    return Pictures(subject.options["images"])


def _views(subject: Subject) -> dict[str, Views]:
    settings, crop = subject.settings, subject.settings.crop_size
    return {
        "pairs": ShiftedPairs(crop, settings.shift_range, **random_pairs(settings)),
        "around": Around(crop, subject.options["within"]),
    }


def _look(
    subject: Subject, pictures: Pictures, views: Mapping[str, Views]
) -> dict[str, Observations]:
    batches = subject.settings.batches(pictures, subject.settings.image_size)
    with progress_bar(len(pictures), ", ".join(views)) as bar:
        return observe(subject.predictor, batches, views, mesh=subject.mesh, progress=bar)


def _arrays(
    around: Observations, pictures: Pictures, subject: Subject, name_of: Any
) -> dict[str, np.ndarray]:
    """What the figure is drawn from, and every image's answers."""
    settings = subject.settings
    kept = around.correct[:, 1:].mean(1)
    order = least_stable_first(around.probability, kept)[: subject.options["least_stable"]]
    shown = [pictures[int(around.index[i])]["image"] for i in order]
    said = np.unique(around.predicted)
    return {
        "name": np.array([pictures.name(int(i)) for i in around.index]),
        "shift": np.array(Around(0, subject.options["within"]).shifts),
        "own_class": around.label,
        "top1": around.predicted,
        "probability": around.probability,
        "shown": order,
        "pixels": np.stack(
            [
                center_image(
                    image, settings.resize_size, settings.crop_size, settings.interpolation
                )
                for image in shown
            ]
        ),
        "class": said,
        "class_name": np.array([name_of(int(i)) for i in said]),
    }


def _told(arrays: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
    """An image in words and numbers: its own class, and the worst shift."""
    names = class_names_in(arrays)
    top, probability = arrays["top1"][i], 100 * arrays["probability"][i]
    same = top == arrays["own_class"][i]
    worst = worst_shift(probability, same)
    return {
        "image": str(arrays["name"][i]),
        "class": names[int(top[0])],
        "probability": float(probability[0]),
        "same_class": 100 * float(same[1:].mean()),
        "worst_shift": arrays["shift"][worst].tolist(),
        "worst_class": names[int(top[worst])],
        "worst_probability": float(probability[worst]),
    }


def _line(net: str, one: Mapping[str, Any]) -> str:
    down, right = one["worst_shift"]
    cells = [
        net,
        Path(one["image"]).name,
        f"{one['class']} {one['probability']:.0f} %",
        f"{one['worst_class']}, {one['class']} {one['worst_probability']:.0f} % at "
        f"({down}, {right})",
        f"{one['same_class']:.0f} %",
    ]
    return f"| {' | '.join(map(markdown, cells))} |"
