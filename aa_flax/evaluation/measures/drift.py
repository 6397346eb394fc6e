"""Drift of representations: how far a shift moves an embedding, against another image.

With g a function from images to vectors (a model's pooled features, CLIP's or DINOv2's image
encoder), x_i(d) the crop of image i moved by d pixels, and

    D = mean over pairs i < j of || g(x_i(0)) - g(x_j(0)) ||,

the drift of image i at the shift d is 100 || g(x_i(d)) - g(x_i(0)) || / D percent: at 100 % the
shift moves the embedding as far as another image would. It does not depend on the scale of g. For
the distance of directions, as CLIP compares them, g returns vectors of length one.

Embeddings move while classes stay (Shifman and Weiss, "Lost in Translation", ECCV 2024, for CLIP
and DINOv2; "Same Answer, Different Representations", arXiv 2602.06652, which relates the drift to
the variability between images).
"""

from collections.abc import Mapping
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from aa_flax.data.unlabelled import Pictures
from aa_flax.errors import InputError, integer
from aa_flax.evaluation.measure import Column, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.own_images import (
    WITHIN,
    PicturesMeasure,
    PicturesOption,
    check_one_process,
    check_room,
)
from aa_flax.evaluation.plots.own_images import plot_drift
from aa_flax.evaluation.predict import Predictor, embedding_of
from aa_flax.evaluation.views import Around, check_size
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import progress_bar

_ROWS = 1024  # of the matrix of distances at once
_RESOLUTION = 2.0**-23  # of float32, relative: closer embeddings are indistinguishable


def mean_distance(vectors: Float[np.ndarray, "n d"]) -> float:
    """Returns the mean Euclidean distance of all pairs of different rows.

    Examples:
        >>> mean_distance(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]))
        3.3333333333333335
    """
    rows = vectors.astype(np.float64)
    rows -= rows.mean(0)  # so that large common parts do not cancel
    squares, total = np.square(rows).sum(1), 0.0
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        found = squares[part, None] + squares - 2 * rows[part] @ rows.T
        total += np.sqrt(np.maximum(found, 0)).sum()
    return float(total / (len(rows) * (len(rows) - 1)))


def drift(
    centre: Float[np.ndarray, "n d"],
    distance: Float[np.ndarray, "n V"],
    radius: Int[np.ndarray, " V"],
) -> Result:
    """Computes the drift in percent of the mean distance between different images.

    Args:
        centre: embeddings of the unshifted crops. distance: of each shifted one from these; view 0
            is unshifted. radius: of each view's shift, max(|down|, |right|).

    Returns:
        The mean over images and shifts; the mean over images of the largest; and the mean over
        shifts of each radius.

    Raises:
        InputError: fewer than two images, or equal embeddings of all.
    """
    if len(centre) < 2:
        raise InputError("--drift compares different images and got one; give two or more")
    scale = mean_distance(centre)
    if scale <= _RESOLUTION * np.abs(centre).max():
        raise InputError(
            f"all {len(centre)} images have the same embedding, so that a drift relative to their "
            "distance is undefined; give different images, or another function"
        )
    percent = 100 * distance / scale
    by_radius = [float(percent[:, radius == r].mean()) for r in range(radius.max() + 1)]
    return {
        "num_images": len(centre),
        "drift": float(percent[:, 1:].mean()),
        "drift_worst": float(percent.max(1).mean()),
        "by_radius": {str(r): value for r, value in enumerate(by_radius)},
        "mean_distance": scale,
    }


class Drift(PicturesMeasure):
    """Distance of the embeddings of shifted images from the unshifted ones; see `drift`.

    For a model of this package the embedding is what its last layer gets (`forward_head` with
    `pre_logits`); for another function its output, vectors `(N, d)`.
    """

    options = (
        PicturesOption("drift", "how far shifts move the embeddings of a folder of images"),
        WITHIN,
    )
    columns = (
        Column(
            "drift",
            ("drift",),
            note="mean distance of a shifted image's embedding from the unshifted one's, in "
            "percent of the mean distance between different images",
        ),
        Column("worst drift", ("drift_worst",), note="the same at the worst shift of each image"),
    )
    plot = staticmethod(plot_drift)
    alike = ("within", "crop")

    def settings(self, subject: Subject) -> Result:
        return {**_pictures(subject).described(), "within": subject.options["within"]}

    def check(self, subject: Subject) -> None:
        check_one_process("drift")
        integer("--within", subject.options["within"], least=1)
        super().check(subject)
        size = subject.settings.image_size
        check_size(_views(subject), size, size)
        check_room(_pictures(subject), subject.settings)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        pictures, views, settings = _pictures(subject), _views(subject), subject.settings
        own = isinstance(subject.model, Classifier)
        embed = partial(_embeddings, embedding_of(subject.model) if own else subject.predictor)
        centres, distances = [], []
        with progress_bar(len(pictures), "drift") as bar:
            for batch in settings.batches(pictures, settings.image_size):
                mask = batch["mask"]
                centre = embed(_view(views, batch, 0))
                moved = [embed(_view(views, batch, i)) for i in range(1, views.calls)]
                distance = [np.linalg.norm(x - centre, axis=1) for x in (centre, *moved)]
                centres.append(centre[mask])
                distances.append(np.stack(distance, 1)[mask])
                bar.update(int(mask.sum()))
        radius = np.abs(views.shifts).max(1)
        found = drift(np.concatenate(centres), np.concatenate(distances), radius)
        by_radius = found["by_radius"].values()
        arrays = {"radius": np.arange(len(by_radius)), "drift": np.array([*by_radius])}
        facts = {"lost": pictures.log_lost()} | self.store_and_plot(subject, arrays)
        return {**found, **facts}

    def line(self, result: Result) -> str:
        return (
            f"{'drift':12} {result['drift']:.2f} % of the distance between images, at the worst "
            f"shift {result['drift_worst']:.2f} %   ({result['num_images']} images, within "
            f"{result['within']} pixels)"
        )


def _pictures(subject: Subject) -> Pictures:
    return Pictures(subject.options["drift"], "--drift")


def _views(subject: Subject) -> Around:
    return Around(subject.settings.crop_size, subject.options["within"])


def _view(views: Around, batch: Mapping[str, np.ndarray], call: int) -> Array:
    return _compiled(views, batch["image"], {"center": batch["center"]}, call)


_compiled = jax.jit(lambda views, *of_batch: views(*of_batch)[:, 0], static_argnums=0)


def _embeddings(predictor: Predictor, view: Array) -> Float[np.ndarray, "N d"]:
    found = np.asarray(predictor.maps(view), np.float64)
    if found.ndim != 2 or len(found) != len(view):
        raise InputError(
            f"{predictor.name} returns an array of shape {found.shape} for {len(view)} images; "
            f"--drift takes vectors ({len(view)}, d): pool maps and tokens in the function"
        )
    if not np.isfinite(found).all():
        raise InputError(
            f"the output of {predictor.name} is not finite; its weights are broken, or its "
            "training diverged"
        )
    return found
