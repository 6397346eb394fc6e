"""First layers of a model: for photographs, or for images as small as CIFAR's."""

from typing import NamedTuple

from aa_flax.errors import InputError


def is_small(stem: object) -> bool:
    """Returns True for the stem for small images, "small", and False for "imagenet"."""
    if stem not in ("imagenet", "small"):
        raise InputError(f"stem must be 'imagenet' or 'small', got {stem!r}")
    return stem == "small"


class StemConvolution(NamedTuple):
    """The first convolution of a ResNet or DenseNet."""

    size: int
    stride: int
    pool_stride: int
    is_small: bool  # no max pool follows


def stem_convolution(stem: object, *, pool_only: bool, is_antialiased: bool) -> StemConvolution:
    """Returns the first convolution: 7x7 at half the resolution, or 3x3 at full for small images.

    With `pool_only` it keeps its stride, so that only the max pool after it is antialiased.
    """
    if not is_antialiased and not pool_only:
        raise InputError("pool_only=False needs an antialiased model: give a filter_size or a pool")
    if not is_small(stem):
        return StemConvolution(7, 2, 1, False) if pool_only else StemConvolution(7, 1, 2, False)
    if not pool_only:
        raise InputError("pool_only=False is for a stem with a stride; stem='small' has none")
    return StemConvolution(3, 1, 1, True)
