"""The first layers of a net: for photographs, or for images as small as CIFAR's."""

from typing import NamedTuple

from aa_flax.errors import InputError


def is_small(stem: object) -> bool:
    """Whether a net's first layers are those for small images.

    Raises:
        InputError: it is neither "imagenet" nor "small".
    """
    if stem not in ("imagenet", "small"):
        raise InputError(f"stem must be 'imagenet' or 'small', got {stem!r}")
    return stem == "small"


class StemConvolution(NamedTuple):
    """The first convolution of a ResNet or DenseNet: a pool carries what is left of its reduction.

    Attributes:
        size: of its filters, in pixels.
        stride: its own.
        reduction: of the resolution, with the pool behind it.
    """

    size: int
    stride: int
    reduction: int


def stem_convolution(stem: object, *, pool_only: bool) -> StemConvolution:
    """The first convolution: 7x7 at half the resolution, or 3x3 at all of it for small images.

    Args:
        stem: "imagenet" or "small".
        pool_only: whether it strides itself, and only the max pool behind it is antialiased.

    Raises:
        InputError: no such stem, or `pool_only=False` of one that has no stride.
    """
    if not is_small(stem):
        return StemConvolution(size=7, stride=2 if pool_only else 1, reduction=2)
    if not pool_only:
        raise InputError("pool_only=False is for a stem with a stride; stem='small' has none")
    return StemConvolution(size=3, stride=1, reduction=1)
