"""First layers of a model: for photographs, or for images as small as CIFAR's."""

from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.models.torch_layout import RELU, Layer
from aa_flax.nn.layers import LayerFactory


def is_small(stem: object) -> bool:
    """Returns True for the stem for small images, "small", and False for "imagenet"."""
    if stem not in ("imagenet", "small"):
        raise InputError(f"stem must be 'imagenet' or 'small', got {stem!r}")
    return stem == "small"


class DeepStem(nnx.Module):
    """Three 3x3 convolutions for the one of 7x7, with half the features in the first two.

    Batch norm and ReLU are between them; those after the last are the model's.

    Source: He et al., CVPR 2019, "Bag of Tricks", Sec. 4.1 (ResNet-C).
    """

    def __init__(self, make: LayerFactory, features: int, stride: int):
        half = features // 2
        self.out_features = features
        self.conv1 = make.conv(3, half, 3, stride=stride, padding=1)
        self.bn1 = make.batch_norm(half)
        self.conv2 = make.conv(half, half, 3, padding=1)
        self.bn2 = make.batch_norm(half)
        self.conv3 = make.conv(half, features, 3, padding=1)

    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N h w c"]:
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        return self.conv3(x)

    def sequential(self) -> list[Layer | None]:
        """Returns the layers as in torch's Sequential."""
        return [self.conv1, self.bn1, RELU, self.conv2, self.bn2, RELU, self.conv3]


class StemConvolution(NamedTuple):
    """The first convolution of a ResNet or DenseNet."""

    size: int
    stride: int
    pool_stride: int
    is_small: bool = False  # no max pool follows
    is_deep: bool = False  # `DeepStem` in its place

    def layer(self, make: LayerFactory, features: int) -> nnx.Conv | DeepStem:
        if self.is_deep:
            return DeepStem(make, features, self.stride)
        padding = self.size // 2
        return make.conv(3, features, self.size, stride=self.stride, padding=padding)


def stem_convolution(stem: object, *, pool_only: bool, is_antialiased: bool) -> StemConvolution:
    """Returns the first convolution: 7x7 at half the resolution, or 3x3 at full for small images.

    With `pool_only` it keeps its stride, so that only the max pool after it is antialiased.
    """
    if not is_antialiased and not pool_only:
        raise InputError("pool_only=False needs an antialiased model: give a filter_size or a pool")
    if stem not in ("imagenet", "small", "deep"):
        raise InputError(f"stem must be 'imagenet', 'small' or 'deep', got {stem!r}")
    if stem != "small":
        size, strides = (3 if stem == "deep" else 7), ((2, 1) if pool_only else (1, 2))
        return StemConvolution(size, *strides, is_deep=stem == "deep")
    if not pool_only:
        raise InputError("pool_only=False is for a stem with a stride; stem='small' has none")
    return StemConvolution(3, 1, 1, is_small=True)
