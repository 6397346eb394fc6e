"""Measures of functions from images to maps: segmentation, depth, restoration and the like.

`mask_consistency` measures the stability of masks under shifts, `translation_psnr` how well a
function commutes with translations. Both take any function from normalised images `(N, H, W, 3)` to
maps `(N, h, w, C)`, in JAX or not, and images with values in 0..255; they run on one device of each
host. Maps smaller than the image by an integer factor are enlarged to it by repeating values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from aa_flax.errors import InputError, integer, real
from aa_flax.evaluation.intervals import clustered_interval
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.predict import Predictor, predictor_of
from aa_flax.evaluation.shifts import MovedPairs, RandomPairs, translated
from aa_flax.evaluation.text import with_interval
from aa_flax.evaluation.views import check_size

Batches = Iterable[Mapping[str, np.ndarray]]  # `image`, `index` and `mask`, as `Settings.batches`
Pairs = RandomPairs | MovedPairs
Compared = tuple[Array, Array]  # a sum over the batch, and numbers of each image

# Half the distance between float32 neighbours at 1: a smaller error is indistinguishable from none.
_RESOLUTION = 2.0**-24


def mask_consistency(
    predict: Any,
    images: np.ndarray,
    *,
    crop_size: int,
    shift_range: int = 32,
    rolled: bool = False,
    passes: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    jit: bool | None = None,
) -> Result:
    """Computes how often two shifted views of an image get the same labels where both see it.

    Args:
        predict: a model, or a function from normalised float32 images `(N, H, W, 3)` to logits of
            each pixel `(N, h, w, classes)`; the likeliest class is the label.
        images: `(N, H, W, 3)`, values in 0..255.
        crop_size: side in pixels of the crops that the function gets.
        shift_range: the two crops are at offsets 0..shift_range-1 on each axis, as for the
            consistency of classes (Zhang 2019, Sec. 4.1).
        rolled: roll the centre crop by two shifts of -shift_range..shift_range-1 pixels instead,
            and compare labels everywhere.
        passes: pairs per image. seed: fixes them, together with the image's index.
        batch_size: images in a call.
        jit: whether it is a function of JAX; None: detect it by tracing.

    Raises:
        InputError: images too small, or an output that is not a map of two or more classes.
    """
    crop_size = integer("crop_size", crop_size, least=1)
    shift_range = integer("shift_range", shift_range, least=1)
    passes = integer("passes", passes, least=1)
    pairs = RandomPairs(crop_size, shift_range, rolled, passes, seed)
    predictor = predictor_of(predict, jit=jit, crop_size=crop_size)
    return masks_of(predictor, image_batches(images, batch_size), pairs)


def translation_psnr(
    predict: Any,
    images: np.ndarray,
    *,
    crop_size: int,
    max_shift: int | None = None,
    fractional: bool = False,
    rolled: bool = False,
    dynamic_range: float | None = None,
    passes: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    jit: bool | None = None,
) -> Result:
    """Computes how well a function commutes with translations, in decibels: EQ-T of StyleGAN3.

    With t_x the translation by x pixels, uniform in -max_shift..max_shift on each axis, f the
    function and V the pixels that both views see,

        10 log10( dynamic_range^2 / E (f(t_x[image])_c(p) - t_x[f(image)]_c(p))^2 ),

    the mean over images, shifts, p in V and channels c (Karras et al. 2021, Sec. 3, Eq. 3, and
    App. E.1). `fractional=True` is EQ-T_frac (App. E.2): any real shift, maps resampled with the
    Lanczos filter; above 40 dB it measures that filter rather than the function.

    The other arguments are those of `mask_consistency`. In the paper images are generated from a
    constant of Fourier features, which is translated; here images are.

    Args:
        predict: a model, or a function to maps `(N, h, w, C)`. For a segmentation model use e.g.
            probabilities, with a range of 1.
        max_shift: default: an eighth of the crop size, as in the paper.
        rolled: roll images, so that V is everything; else new content enters at the border.
        dynamic_range: largest minus smallest value of the maps, e.g. 2 for images in -1..1.
            None: as found in the maps of unmoved images.

    Raises:
        InputError: images too small, an output that is not a map, or a constant map without a
            dynamic range.
    """
    crop_size = integer("crop_size", crop_size, least=1)
    passes = integer("passes", passes, least=1)
    reach = crop_size // 8 if max_shift is None else integer("max_shift", max_shift, least=0)
    pairs = MovedPairs(crop_size, reach, fractional, rolled, passes, seed)
    predictor = predictor_of(predict, jit=jit, crop_size=crop_size)
    return psnr_of(predictor, image_batches(images, batch_size), pairs, dynamic_range)


def masks_of(predictor: Predictor, batches: Batches, pairs: Pairs) -> Result:
    """Computes `mask_consistency` of batches, in percent; each host passes its own.

    Raises:
        InputError: maps of one channel.
    """
    confusion, per_image = _over_pairs(predictor, batches, pairs, _confusion)
    check_masks(predictor, len(confusion))
    # Dice coefficients, 2 |A and B| / (|A| + |B|), with A and B the pixels of a class in the first
    # and the second mask; None for a class that no mask has.
    hits, counts = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    per_class = [200 * float(h / n) if n else None for h, n in zip(hits, counts, strict=True)]
    return {
        "num_images": len(per_image),
        "consistency": float(np.mean([value for value in per_class if value is not None])),
        "agreement": 100 * float(per_image.mean()),  # pixels with the same label in both masks
        "agreement_interval": clustered_interval(per_image, pairs.passes),
        "per_class": per_class,
    }


def psnr_of(
    predictor: Predictor, batches: Batches, pairs: Pairs, dynamic_range: float | None = None
) -> Result:
    """Computes `translation_psnr` of batches; each host passes its own.

    Raises:
        InputError: constant maps, or a `dynamic_range` of 0 or less.
    """
    if dynamic_range is not None:
        dynamic_range = real("dynamic_range", dynamic_range, least=0)
    sums, extremes = _over_pairs(predictor, batches, pairs, _squared_error)
    found = float(extremes[:, 1].max() - extremes[:, 0].min())
    dynamic_range = found if dynamic_range is None else dynamic_range
    if dynamic_range == 0:
        raise InputError(
            f"the maps of {predictor.name} are constant, or dynamic_range is 0, so the ratio is "
            "undefined; give the range that their values may have as dynamic_range"
        )
    error = float(sums[0] / sums[1])
    ratio = max(error / dynamic_range**2, _RESOLUTION**2)
    return {
        "num_images": len(extremes),
        "psnr": -10 * float(np.log10(ratio)),  # at most 144.5
        "mean_squared_error": error,
        "dynamic_range": dynamic_range,
    }


def _check_shape(
    predictor: Predictor, shape: tuple[int, ...] | None, count: int, crop_size: int
) -> None:
    fits = shape is not None and len(shape) == 4 and shape[0] == count and min(shape) > 0
    if not fits or shape is None or any(crop_size % n for n in shape[1:3]):
        found = "no array" if shape is None else f"an array of shape {shape}"
        raise InputError(
            f"{predictor.name} returns {found} for {count} images of {crop_size} pixels; it has to "
            "return maps (N, h, w, C), as large as the images or smaller by an integer factor"
        )


def check_masks(predictor: Predictor, num_classes: int) -> None:
    """Checks that a function's maps can be masks.

    Raises:
        InputError: maps of one channel.
    """
    if num_classes < 2:
        raise InputError(
            f"{predictor.name} returns maps of one channel, and masks need logits of two or more "
            "classes; for one logit x, return 0 and x"
        )


def image_batches(images: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of images in memory, the last one padded with masked copies.

    Raises:
        InputError: not an array `(N, H, W, 3)` of one or more images.
    """
    images, batch_size = np.asarray(images), integer("batch_size", batch_size, least=1)
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise InputError(f"images must be an array (N, H, W, 3), got one of shape {images.shape}")
    for start in range(0, len(images), batch_size):
        index = np.arange(start, start + batch_size)
        mask = index < len(images)  # the last image pads the last batch
        index = np.minimum(index, len(images) - 1)
        yield {"image": images[index], "index": index, "mask": mask}


def _over_pairs(
    predictor: Predictor, batches: Batches, pairs: Pairs, compare: Callable[..., Compared]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over all pairs of all hosts; also returns the mean over each image's pairs."""
    total, per_image = np.float64(0), []
    for batch in batches:
        images, index, mask = (batch[name] for name in ("image", "index", "mask"))
        check_size(pairs, *images.shape[1:3])
        of_batch = np.float64(0)
        for call in range(pairs.passes):
            first, second, shifts = pair_of_views(pairs, images, index, call)
            maps = (maps_of(predictor, view) for view in (first, second))
            part, numbers = compare(*maps, shifts, mask, pairs)
            total = total + np.asarray(part, np.float64)
            of_batch = of_batch + np.asarray(numbers, np.float64)[mask] / pairs.passes
        per_image.append(of_batch)
    total, numbers = np.asarray(total), np.concatenate(per_image)
    if jax.process_count() > 1:
        total = multihost_utils.process_allgather(total).sum(0)
        numbers = multihost_utils.process_allgather(numbers, tiled=True)
    return total, numbers


# Compiled once for all equal pairs.
pair_of_views = partial(jax.jit, static_argnums=0)(lambda pairs, *of_batch: pairs(*of_batch))


def maps_of(predictor: Predictor, view: Array) -> Float[Array, "N s s C"]:
    """Computes the maps of a view, enlarged to its size.

    Raises:
        InputError: an output that is not a map, or not finite.
    """
    maps, size = predictor.maps(view), view.shape[1]
    _check_shape(predictor, maps.shape, len(view), size)
    if not jnp.isfinite(maps).all():
        raise InputError(
            f"the maps of {predictor.name} are not finite; its weights are broken, or its training "
            "diverged"
        )
    return maps.repeat(size // maps.shape[1], axis=1).repeat(size // maps.shape[2], axis=2)


@partial(jax.jit, static_argnames="pairs")
def _confusion(first: Array, second: Array, shifts: Array, mask: Array, pairs: Pairs) -> Compared:
    """Counts pixels by labels in both masks `(C, C)`; and each image's fraction that agree."""
    classes = first.shape[-1]
    labels = first.argmax(-1)[..., None]
    labels, valid = translated(labels, shifts, fractional=False, periodic=pairs.rolled)
    others = second.argmax(-1)[..., None]
    counted = valid & mask[:, None, None, None]
    cells = (labels * classes + others).ravel()
    confusion = jnp.zeros(classes**2, jnp.int32).at[cells].add(counted.ravel())
    agreed = jnp.mean(labels == others, axis=(1, 2, 3), where=valid)
    return confusion.reshape(classes, classes), agreed


@partial(jax.jit, static_argnames="pairs")
def _squared_error(
    first: Array, second: Array, shifts: Array, mask: Array, pairs: Pairs
) -> Compared:
    """Sums squared differences and counts them; and the extremes of each image's unmoved map."""
    moved, valid = translated(first, shifts, fractional=pairs.fractional, periodic=pairs.rolled)
    counted = valid & mask[:, None, None, None]
    squares = jnp.square(moved - second).sum(where=counted)
    count = first.shape[-1] * counted.sum()
    return jnp.stack([squares, count]), jnp.stack([first.min((1, 2, 3)), first.max((1, 2, 3))], -1)


FRACTIONAL = Option(  # one option, which the measures have in common
    "fractional", "shifts of fractions of a pixel, too: EQ-T_frac"
)


class MapsMeasure(Measure):
    """A measure that compares a function's maps of two views of each image, its `pairs`."""

    of_maps = True

    def pairs(self, subject: Subject) -> Pairs:
        raise NotImplementedError

    def settings(self, subject: Subject) -> Result:
        return dict(vars(self.pairs(subject)))

    def check(self, subject: Subject) -> None:
        settings, predictor = subject.settings, subject.predictor
        check_size(self.pairs(subject), settings.image_size, settings.image_size)
        batch, crop = settings.batch(len(subject.source)), settings.crop_size
        _check_shape(predictor, predictor.output_shape(crop, batch), batch, crop)

    def parts(self, subject: Subject) -> tuple[Predictor, Batches, Pairs]:
        """Returns the function, its images and the pairs of views."""
        batches = subject.settings.batches(subject.source, subject.settings.image_size)
        return subject.predictor, batches, self.pairs(subject)


class MaskConsistency(MapsMeasure):
    """Agreement of the labels of pixels that two crops at random offsets both see."""

    options = (Option("mask_consistency", "agreement of the masks of two shifted crops"),)
    columns = (
        Column(
            "masks",
            ("consistency",),
            note="agreement of two shifted crops' masks where both see, mean over the classes",
        ),
    )

    def pairs(self, subject: Subject) -> RandomPairs:
        return subject.settings.to(RandomPairs, rolled=False)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        return masks_of(*self.parts(subject))

    def line(self, result: Result) -> str:
        return (
            f"{'masks':12} consistency {result['consistency']:6.2f} %   agreement "
            f"{with_interval(result['agreement'], result['agreement_interval'])}   "
            f"({result['passes']} passes, seed {result['seed']})"
        )


class TranslationPSNR(MapsMeasure):
    """EQ-T of StyleGAN3 for functions of images, in decibels; see `translation_psnr`."""

    options = (
        Option("translation_psnr", "PSNR of translation equivariance, in decibels"),
        FRACTIONAL,
        Option("dynamic_range", "of the maps; default: as found", None, float),
    )
    columns = (
        Column(
            "EQ-T",
            ("psnr",),
            unit="dB",
            note="PSNR of translation equivariance, in decibels (Karras et al. 2021, Eq. 3)",
        ),
    )

    def pairs(self, subject: Subject) -> MovedPairs:
        settings, fractional = subject.settings, subject.options["fractional"]
        reach = settings.crop_size // 8
        return settings.to(MovedPairs, max_shift=reach, fractional=fractional, rolled=False)

    def settings(self, subject: Subject) -> Result:
        return super().settings(subject) | {"given_range": subject.options["dynamic_range"]}

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        return psnr_of(*self.parts(subject), subject.options["dynamic_range"])

    def line(self, result: Result) -> str:
        name = "EQ-T_frac" if result["fractional"] else "EQ-T"
        return (
            f"{name:12} {result['psnr']:6.2f} dB   (shifts of up to {result['max_shift']} pixels, "
            f"{result['passes']} passes, seed {result['seed']})"
        )
