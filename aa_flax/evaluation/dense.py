"""Measures of functions from images to maps: segmentation, depth, restoration and the like.

How steady masks are under shifts (`mask_consistency`), and how well a function commutes with
translations (`translation_psnr`). Both are given any function from normalised images
`(N, H, W, 3)` to maps `(N, h, w, C)`, of JAX or not, and images with values in 0..255; they run on
one device of each host. Maps smaller than the image by a whole factor are enlarged to it by
repeating values: what a pixel gets is what its cell of the map says.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from aa_flax.errors import InputError, integer, real
from aa_flax.evaluation.intervals import clustered_interval
from aa_flax.evaluation.moved import MovedFromCentre, RandomPairs, translated
from aa_flax.evaluation.predict import Predictor, predictor_of
from aa_flax.evaluation.views import check_size

Batches = Iterable[Mapping[str, np.ndarray]]  # `image`, `index` and `mask`, as `Settings.batches`
Views = RandomPairs | MovedFromCentre


class MaskConsistency(TypedDict):
    """How alike two views of an image are labelled, in percent, over all images and pairs.

    Attributes:
        consistency: mean of the classes' agreement, over classes that any mask has.
        agreement: pixels with the same label in both masks, mean over the pairs.
        agreement_interval: its 95 % confidence interval, with the images as the sample.
        per_class: for class c, with A and B the pixels that the first and the second mask give to
            it: 2 |A and B| / (|A| + |B|), the share of pixels that one gives to c which the other
            gives to c, too. None for a class that no mask has.
    """

    num_images: int
    consistency: float
    agreement: float
    agreement_interval: list[float]
    per_class: list[float | None]


class TranslationPSNR(TypedDict):
    """Peak signal-to-noise ratio of translation equivariance.

    Attributes:
        psnr: 10 log10(dynamic_range^2 / mean_squared_error) in decibels; at most 144.5, where the
            error is below float32's resolution of the dynamic range.
        dynamic_range: of the maps, what was given or found.
    """

    num_images: int
    psnr: float
    mean_squared_error: float
    dynamic_range: float


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
) -> MaskConsistency:
    """How often two shifted views of an image get the same labels where both see it.

    Args:
        predict: a net, or a function from normalised float32 images `(N, H, W, 3)` to logits of
            each pixel `(N, h, w, classes)`; the likeliest class is the label.
        images: `(N, H, W, 3)`, values in 0..255.
        crop_size: pixels of a side that the function sees.
        shift_range: the two crops are at offsets 0..shift_range-1 on each axis, as those of the
            consistency of classes (Zhang 2019, Sec. 4.1).
        rolled: instead the centre crop, rolled by two shifts of -shift_range..shift_range-1 pixels;
            labels are then compared everywhere.
        passes: pairs of each image. seed: with the image's place, it fixes them.
        batch_size: images in a call.
        jit: whether it is a function of JAX; None: it is, if JAX can trace it.

    Raises:
        InputError: images too small, or what the function gives is no map of two classes or more.
    """
    views = RandomPairs(
        integer("crop_size", crop_size, least=1),
        integer("shift_range", shift_range, least=1),
        rolled,
        integer("passes", passes, least=1),
        seed,
    )
    predictor = predictor_of(predict, jit=jit, crop_size=crop_size)
    return masks_of(predictor, _batches(images, batch_size), views)


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
) -> TranslationPSNR:
    """How well a function commutes with translations, in decibels: EQ-T of StyleGAN3.

    With t_x the translation by x pixels, uniform in -max_shift..max_shift on each axis, f the
    function and V the pixels that both views see,

        10 log10( dynamic_range^2 / E (f(t_x[image])_c(p) - t_x[f(image)]_c(p))^2 ),

    the mean over images, shifts, p in V and channels c (Karras et al. 2021, Sec. 3, Eq. 3, and
    App. E.1). `fractional=True` is EQ-T_frac (App. E.2): any real shift, maps resampled by Lanczos'
    filter; beyond 40 dB it says more of that filter than of the function.

    Args:
        predict: a net, or a function from normalised float32 images `(N, H, W, 3)` to maps
            `(N, h, w, C)`. Of a segmentation net give probabilities, say, with a range of 1.
        images: `(N, H, W, 3)`, values in 0..255. The paper's are generated, and its function's
            input is a constant of Fourier features; here images are moved.
        crop_size: pixels of a side that the function sees.
        max_shift: None: an eighth of the crop size, as in the paper.
        rolled: images are rolled and V is everything; else new content comes in at the border.
        dynamic_range: the largest value of the maps less the smallest: 2 for images in -1..1.
            None: as found in the maps of unmoved images.
        passes: shifts of each image. seed: with the image's place, it fixes them.
        batch_size: images in a call.
        jit: whether it is a function of JAX; None: it is, if JAX can trace it.

    Raises:
        InputError: images too small, no map, or one that is constant and without a dynamic range.
    """
    crop_size = integer("crop_size", crop_size, least=1)
    views = MovedFromCentre(
        crop_size,
        crop_size // 8 if max_shift is None else integer("max_shift", max_shift, least=0),
        fractional,
        rolled,
        integer("passes", passes, least=1),
        seed,
    )
    predictor = predictor_of(predict, jit=jit, crop_size=crop_size)
    return psnr_of(predictor, _batches(images, batch_size), views, dynamic_range)


def masks_of(predictor: Predictor, batches: Batches, views: Views) -> MaskConsistency:
    """`mask_consistency`, of batches; each host gives its own.

    Raises:
        InputError: maps of one channel.
    """
    confusion, per_image = _over_hosts(_each_batch(predictor, batches, views, _confusion))
    if len(confusion) < 2:
        raise InputError(
            f"{predictor.name} gives maps of one channel, and masks need logits of two classes or "
            "more; of one logit x, give 0 and x"
        )
    hits = np.diag(confusion)
    given = confusion.sum(0) + confusion.sum(1)
    per_class = [200 * float(h / n) if n else None for h, n in zip(hits, given, strict=True)]
    return {
        "num_images": len(per_image),
        "consistency": float(np.mean([share for share in per_class if share is not None])),
        "agreement": 100 * float(per_image.mean()),
        "agreement_interval": clustered_interval(per_image, views.passes),
        "per_class": per_class,
    }


def psnr_of(
    predictor: Predictor, batches: Batches, views: Views, dynamic_range: float | None = None
) -> TranslationPSNR:
    """`translation_psnr`, of batches; each host gives its own.

    Raises:
        InputError: maps that are the same everywhere, or a `dynamic_range` of 0 or less.
    """
    if dynamic_range is not None:
        dynamic_range = real("dynamic_range", dynamic_range, least=0)
    sums, extremes = _over_hosts(_each_batch(predictor, batches, views, _squared_error))
    found = float(extremes[:, 1].max() - extremes[:, 0].min())
    dynamic_range = found if dynamic_range is None else dynamic_range
    if dynamic_range == 0:
        raise InputError(
            f"the maps of {predictor.name} are the same everywhere, or dynamic_range is 0: nothing "
            "can be said of them; give the range that their values may have as dynamic_range"
        )
    error = float(sums[0] / sums[1])
    ratio = max(error / dynamic_range**2, _RESOLUTION**2)
    return {
        "num_images": len(extremes),
        "psnr": -10 * float(np.log10(ratio)),
        "mean_squared_error": error,
        "dynamic_range": dynamic_range,
    }


# Half the distance between float32's neighbours at 1: no smaller error can be told from none.
_RESOLUTION = 2.0**-24


def check_maps(predictor: Predictor, crop_size: int, batch_size: int = 1) -> None:
    """Finds without data whether a function gives maps.

    Raises:
        InputError: it does not, or cannot see images of that size.
    """
    _check_shape(predictor, predictor.output_shape(crop_size, batch_size), batch_size, crop_size)


def _check_shape(
    predictor: Predictor, shape: tuple[int, ...] | None, count: int, crop_size: int
) -> None:
    fits = shape is not None and len(shape) == 4 and shape[0] == count and min(shape) > 0
    if not fits or shape is None or any(crop_size % n for n in shape[1:3]):
        found = "no array" if shape is None else f"an array of shape {shape}"
        raise InputError(
            f"{predictor.name} gives {found} for {count} images of {crop_size} pixels; it has to "
            "give maps (N, h, w, C), as large as the images or a whole number of times smaller"
        )


def _batches(images: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    images, batch_size = np.asarray(images), integer("batch_size", batch_size, least=1)
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise InputError(f"images must be an array (N, H, W, 3), got one of shape {images.shape}")
    for start in range(0, len(images), batch_size):
        index = np.arange(start, start + batch_size)
        mask = index < len(images)  # the last image fills up the last batch
        index = np.minimum(index, len(images) - 1)
        yield {"image": images[index], "index": index, "mask": mask}


Compared = tuple[Array, Array]  # a sum over the batch, and numbers of each image


def _each_batch(
    predictor: Predictor, batches: Batches, views: Views, compare: Callable[..., Compared]
) -> tuple[np.ndarray, np.ndarray]:
    """The sum over all pairs, and the mean over each image's pairs, image by image."""
    total, each = np.float64(0), []
    for batch in batches:
        images, index, mask = (batch[name] for name in ("image", "index", "mask"))
        check_size(views, *images.shape[1:3])
        of_batch = np.float64(0)
        for call in range(views.passes):
            first, second, shifts = _shown(views, images, index, call)
            maps = (_seen(predictor, view) for view in (first, second))
            part, numbers = compare(*maps, shifts, mask, views)
            total = total + np.asarray(part, np.float64)
            of_batch = of_batch + np.asarray(numbers, np.float64)[mask] / views.passes
        each.append(of_batch)
    return np.asarray(total), np.concatenate(each)


def _over_hosts(found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sums added, and images joined."""
    if jax.process_count() == 1:
        return found
    total = multihost_utils.process_allgather(found[0]).sum(0)
    return total, multihost_utils.process_allgather(found[1], tiled=True)


_shown = partial(jax.jit, static_argnums=0)(
    lambda views, images, index, call: views(images, index, call)
)


def _seen(predictor: Predictor, view: Array) -> Float[Array, "N s s C"]:
    """Maps of a view, enlarged to its size."""
    maps, size = predictor.maps(view), view.shape[1]
    _check_shape(predictor, maps.shape, len(view), size)
    if not jnp.isfinite(maps).all():
        raise InputError(
            f"the maps of {predictor.name} are not finite; its weights are broken, or its training "
            "diverged"
        )
    return maps.repeat(size // maps.shape[1], axis=1).repeat(size // maps.shape[2], axis=2)


@partial(jax.jit, static_argnames="views")
def _confusion(first: Array, second: Array, shifts: Array, mask: Array, views: Views) -> Compared:
    """Pixels by their labels in both masks `(C, C)`; the share of each image's that agree."""
    classes = first.shape[-1]
    labels = first.argmax(-1)[..., None]
    labels, known = translated(labels, shifts, fractional=False, rolled=views.rolled)
    others = second.argmax(-1)[..., None]
    counted = known & mask[:, None, None, None]
    pairs = (labels * classes + others).ravel()
    confusion = jnp.zeros(classes**2, jnp.int32).at[pairs].add(counted.ravel())
    shares = jnp.mean(labels == others, axis=(1, 2, 3), where=known)
    return confusion.reshape(classes, classes), shares


@partial(jax.jit, static_argnames="views")
def _squared_error(
    first: Array, second: Array, shifts: Array, mask: Array, views: Views
) -> Compared:
    """The sum of squares and how many they are; the extremes of each image's unmoved map."""
    moved, known = translated(first, shifts, fractional=views.fractional, rolled=views.rolled)
    counted = known & mask[:, None, None, None]
    squares = jnp.square(moved - second).sum(where=counted)
    count = first.shape[-1] * counted.sum()
    return jnp.stack([squares, count]), jnp.stack([first.min((1, 2, 3)), first.max((1, 2, 3))], -1)
