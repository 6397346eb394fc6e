"""Stability of predictions on unlabelled images: the class of the centre crop is the label."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from aa_flax.data.pixels import center_image
from aa_flax.data.unlabelled import Pictures
from aa_flax.errors import InputError, integer
from aa_flax.evaluation.measure import Column, Option, Result, Subject
from aa_flax.evaluation.measures.consistency import consistency
from aa_flax.evaluation.observe import Observations, observe_source
from aa_flax.evaluation.own_images import (
    CLASS_NAMES,
    WITHIN,
    PicturesMeasure,
    PicturesOption,
    check_room,
    class_namer,
)
from aa_flax.evaluation.plots.own_images import class_names_in, plot_least_stable, worst_shift
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.text import markdown, markdown_table, with_interval
from aa_flax.evaluation.views import Around, Center, ShiftedPairs, Views, check_size

_TIE = 1e-3  # in log-probability: rounding may swap two classes closer than that


def stability(pairs: Observations, around: Observations) -> Result:
    """Computes percentages; the images are labelled with the class of their unshifted crop.

    Args:
        pairs: views 0 and 1, 2 and 3, ... are pairs of crops.
        around: view 0 is unshifted, the others are shifted.

    Raises:
        InputError: outputs that are not finite, or that differ for the same image.
    """
    around.check_finite()
    changed = around.log_other[:, 0] - around.log_probability[:, 0] > _TIE
    if changed.any():
        raise InputError(
            f"the model gave {changed.sum()} of {len(changed)} images another class when it saw "
            "them again; is it in training mode (dropout, batch statistics)?"
        )
    paired = consistency(pairs)
    change = np.abs(around.probability[:, 1:] - around.probability[:, :1])
    same = around.correct[:, 1:]
    return {
        "num_images": len(around.index),
        "consistency": paired["consistency"],
        "consistency_interval": paired["consistency_interval"],
        "same_class": 100 * float(same.mean()),  # of all shifted crops
        "worst_case": 100 * float(same.all(1).mean()),  # images that keep it at every shift
        # Differences from the probability of that class for the unshifted crop.
        "probability_change": 100 * float(change.mean(dtype=np.float64)),
        "probability_change_worst": 100 * float(change.max()),
    }


def least_stable_first(
    probability: Float[np.ndarray, "n S"], kept: Float[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Orders images: by the fraction of shifts that keep the class, then by the largest drop."""
    drop = probability[:, 0] - probability.min(1)  # view 0 is unshifted
    return np.lexsort((-drop, kept))


class Images(PicturesMeasure):
    """Consistency, change of probability and worst case of unlabelled images; see `stability`."""

    options = (
        PicturesOption("images", "stability of the predictions on a folder of unlabelled images"),
        WITHIN,
        Option("least_stable", "--images: number of least stable images to show", 4, int),
        CLASS_NAMES,
    )
    columns = (
        Column(
            "own images: consistency",
            ("consistency",),
            interval="consistency_interval",
            note="fraction of pairs of crops of the unlabelled images, at two random offsets, that "
            "get the same class",
        ),
        Column(
            "worst case of own images",
            ("worst_case",),
            note="fraction of the unlabelled images that keep the class of their centre crop at "
            "every shift within a few pixels",
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
        options["shown"] = subject.options["least_stable"]
        return {**_pictures(subject).described(), **options, **subject.settings.of_pairs()}

    def check(self, subject: Subject) -> None:
        for name in ("within", "least_stable"):
            integer(f"--{name}", subject.options[name], least=1)
        super().check(subject)
        size = subject.settings.image_size
        for views in _views(subject).values():
            check_size(views, size, size)
        check_room(_pictures(subject), subject.settings)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        pictures, settings = _pictures(subject), subject.settings
        classes = subject.predictor.num_classes(settings.crop_size)
        name_of = class_namer(subject, classes)
        size, mesh = settings.image_size, subject.mesh
        look = partial(observe_source, subject.predictor, pictures, settings, crop=size, mesh=mesh)
        own = look({"own": Center(settings.crop_size)})["own"]
        own.check_finite()
        labels = np.zeros(len(pictures), np.int64)
        labels[own.index] = own.predicted[:, 0]
        pictures.label(labels, classes)
        found = look(_views(subject))
        result = stability(found["pairs"], found["around"])
        arrays = _arrays(found["around"], pictures, subject, name_of)
        result["least_stable"] = [_worst_of(arrays, i) for i in arrays["shown"]]
        result["lost"] = pictures.log_lost()
        skipped = np.setdiff1d(np.arange(len(pictures)), own.index)
        result["skipped"] = [pictures.name(int(i)) for i in skipped]
        return result | self.store_and_plot(subject, arrays)

    def line(self, result: Result) -> str:
        return (
            f"{'own images':12} consistency "
            f"{with_interval(result['consistency'], result['consistency_interval'])}   "
            f"within {result['within']} pixels: same class at "
            f"{result['same_class']:.2f} % of shifts, at all of them {result['worst_case']:.2f} % "
            f"of {result['num_images']} images, change of P {result['probability_change']:.2f} %, "
            f"at worst {result['probability_change_worst']:.2f} %"
        )

    def section(self, rows: Sequence[Row]) -> str:
        parts = []
        for group in self.groups(rows).values():
            first = group[0].first("images") or {}
            where = markdown(first.get("folder", f"{first['num_images']} images"))
            about = f"Of {where}, with shifts within {first['within']} pixels on each axis."
            heads = ["model", "least stable images", "class there", "elsewhere", "same class"]
            cells = [
                _cells(row.title, one)
                for row in group
                for one in (row.first("images") or {})["least_stable"]
            ]
            parts += ["## Own images", about, markdown_table(heads, cells)]
        return "\n\n".join(parts)


def _pictures(subject: Subject) -> Pictures:
    return Pictures(subject.options["images"])


def _views(subject: Subject) -> dict[str, Views]:
    around = Around(subject.settings.crop_size, subject.options["within"])
    return {"pairs": subject.settings.to(ShiftedPairs), "around": around}


def _arrays(
    around: Observations, pictures: Pictures, subject: Subject, name_of: Any
) -> dict[str, np.ndarray]:
    """Returns the data of the plot, and the predictions for every image."""
    settings = subject.settings
    how = (settings.resize_size, settings.crop_size, settings.interpolation)
    kept = around.correct[:, 1:].mean(1)
    order = least_stable_first(around.probability, kept)[: subject.options["least_stable"]]
    shown = [pictures[int(around.index[i])]["image"] for i in order]
    classes = np.unique(around.predicted)
    return {
        "name": np.array([pictures.name(int(i)) for i in around.index]),
        "shift": np.array(Around(0, subject.options["within"]).shifts),
        "own_class": around.label,
        "top1": around.predicted,
        "probability": around.probability,
        "shown": order,
        "pixels": np.stack([center_image(image, *how) for image in shown]),
        "class": classes,
        "class_name": np.array([name_of(int(i)) for i in classes]),
    }


def _worst_of(arrays: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
    """Describes an image: its centre class, and its worst shift."""
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


def _cells(model: str, one: Mapping[str, Any]) -> list[str]:
    down, right = one["worst_shift"]
    there = f"{one['class']} {one['probability']:.0f} %"
    worst = f"{one['class']} {one['worst_probability']:.0f} % at ({down}, {right})"
    elsewhere, same = f"{one['worst_class']}, {worst}", f"{one['same_class']:.0f} %"
    return [*map(markdown, (model, Path(one["image"]).name, there, elsewhere, same))]
