"""Jitter of points: how far keypoints or the corners of boxes are from moving with the image.

With p a function from images to points, T_d the translation by d pixels, and x a crop,

    jitter = mean of || p(T_d x) - T_d p(x) || pixels

over images, random shifts d and points: zero if points move exactly with the content. It is the
error of shift equivariance that detectors and keypoint models show as boxes that tremble.
`point_jitter` takes any function from normalised images `(N, H, W, 3)` to points `(N, K, 2)`, as
(x, y) in pixels of the crop, or boxes `(N, K, 4)`, as (x1, y1, x2, y2), in JAX or not. The k-th
point of both views is the same one; NaN is a point that is not found.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from aa_flax.errors import InputError, integer
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.measures.maps import FRACTIONAL, Batches, image_batches, pair_of_views
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.predict import Predictor, predictor_of
from aa_flax.evaluation.shifts import MovedPairs
from aa_flax.evaluation.views import check_size


def point_jitter(
    predict: Any,
    images: np.ndarray,
    *,
    crop_size: int,
    max_shift: int | None = None,
    fractional: bool = False,
    passes: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    jit: bool | None = None,
) -> Result:
    """Computes how far points are from moving with the image, in pixels.

    Args:
        predict: a function from normalised float32 images `(N, H, W, 3)` to points `(N, K, 2)` or
            boxes `(N, K, 4)`, in pixels of the crop; NaN: not found.
        images: `(N, H, W, 3)`, values in 0..255.
        crop_size: side in pixels of the crops that the function gets.
        max_shift: shifts are uniform in -max_shift..max_shift on each axis. Default: an eighth of
            the crop size.
        fractional: any real shifts, band-limited; else integers.
        passes: shifts of each image. seed: fixes them, together with the image's index.
        batch_size: images in a call.
        jit: whether it is a function of JAX; None: detect it by tracing.

    Raises:
        InputError: images too small, an output of another shape, or no point found in both views.

    Examples:
        >>> def brightest(x):  # the position of the brightest pixel of each crop, as (x, y)
        ...     place = x.sum(-1).reshape(len(x), -1).argmax(1)
        ...     return jax.numpy.stack([place % 32, place // 32], -1)[:, None]
        >>> images = np.zeros((1, 48, 48, 3), np.uint8)
        >>> images[0, 24, 20] = 255
        >>> point_jitter(brightest, images, crop_size=32)["jitter"]
        0.0
        >>> coarse = point_jitter(lambda x: brightest(x) // 8 * 8, images, crop_size=32)
        >>> coarse["jitter"] > 1
        True
    """
    crop_size = integer("crop_size", crop_size, least=1)
    passes = integer("passes", passes, least=1)
    reach = crop_size // 8 if max_shift is None else integer("max_shift", max_shift, least=0)
    pairs = MovedPairs(crop_size, reach, fractional, False, passes, seed)
    predictor = predictor_of(predict, jit=jit, crop_size=crop_size)
    return jitter_of(predictor, image_batches(images, batch_size), pairs)


def jitter_of(predictor: Predictor, batches: Batches, pairs: MovedPairs) -> Result:
    """Computes `point_jitter` of batches; each host passes its own.

    Returns:
        The mean distance in pixels and its largest value, and the percentage of points that are not
        found in one of the two views, which do not count otherwise.

    Raises:
        InputError: another number of points for other images, or none found in both views.
    """
    found = []
    for batch in batches:
        images, index, mask = (batch[name] for name in ("image", "index", "mask"))
        check_size(pairs, *images.shape[1:3])
        for call in range(pairs.passes):
            first, second, shifts = pair_of_views(pairs, images, index, call)
            before, after = points_of(predictor, first), points_of(predictor, second)
            if before.shape != after.shape or (found and before.shape[1] != found[0].shape[1]):
                raise InputError(
                    f"{predictor.name} returns different numbers of points for different images; "
                    "give the same points each time, and NaN for one that is not found"
                )
            right_down = np.asarray(shifts, np.float64)[:, None, ::-1]
            found.append(np.linalg.norm(after - before - right_down, axis=-1)[mask])
    distance = np.concatenate(found)
    if jax.process_count() > 1:
        distance = multihost_utils.process_allgather(distance, tiled=True)
    is_known = ~np.isnan(distance)
    if not is_known.any():
        raise InputError(
            f"{predictor.name} finds no point in both views of any image (NaN: not found), so "
            "their jitter is undefined"
        )
    return {
        "num_images": len(distance) // pairs.passes,
        "jitter": float(distance[is_known].mean()),
        "jitter_worst": float(distance[is_known].max()),
        "missing": 100 * float((~is_known).mean()),
    }


def points_of(predictor: Predictor, view: jax.Array) -> Float[np.ndarray, "N k 2"]:
    """Computes the points of a view; of boxes both corners.

    Raises:
        InputError: an output of another shape, or infinite.
    """
    points = np.asarray(predictor.maps(view), np.float64)
    _check_shape(predictor, points.shape, len(view))
    if np.isinf(points).any():
        raise InputError(
            f"the points of {predictor.name} are not finite; give NaN for a point that is not found"
        )
    return points.reshape(len(points), -1, 2)


def _check_shape(predictor: Predictor, shape: tuple[int, ...] | None, count: int) -> None:
    if shape is None or len(shape) != 3 or shape[0] != count or shape[2] not in (2, 4):
        found = "no array" if shape is None else f"an array of shape {shape}"
        raise InputError(
            f"{predictor.name} returns {found} for {count} images; it has to return points "
            f"({count}, K, 2) or boxes ({count}, K, 4), in pixels"
        )
    if not shape[1]:
        raise InputError(f"{predictor.name} returns no points; give K of at least 1")


class PointJitter(Measure):
    """Distance in pixels of points from where the shift of the image moves them."""

    options = (
        Option("point_jitter", "jitter of keypoints and boxes under shifts, in pixels"),
        FRACTIONAL,
    )
    columns = (
        Column(
            "jitter (px)",
            ("jitter",),
            unit="px",
            note="mean distance of points from where the shift of the image moves them, in pixels",
        ),
    )
    of_maps = True

    def pairs(self, subject: Subject) -> MovedPairs:
        settings, fractional = subject.settings, subject.options["fractional"]
        reach = settings.crop_size // 8
        return settings.to(MovedPairs, max_shift=reach, fractional=fractional, rolled=False)

    def settings(self, subject: Subject) -> Result:
        return dict(vars(self.pairs(subject)))

    def check(self, subject: Subject) -> None:
        settings, predictor = subject.settings, subject.predictor
        check_size(self.pairs(subject), settings.image_size, settings.image_size)
        batch = settings.batch(len(subject.source))
        _check_shape(predictor, predictor.output_shape(settings.crop_size, batch), batch)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        batches = subject.settings.batches(subject.source, subject.settings.image_size)
        return jitter_of(subject.predictor, batches, self.pairs(subject))

    def line(self, result: Result) -> str:
        return (
            f"{'points':12} jitter {result['jitter']:.3f} pixels, at worst "
            f"{result['jitter_worst']:.3f}   (shifts of up to {result['max_shift']} pixels, "
            f"{result['missing']:.2f} % not found)"
        )
