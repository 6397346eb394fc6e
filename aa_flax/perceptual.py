"""Perceptual distance of images by the features of a model, plain or antialiased (LPIPS).

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (CVPR 2018),
Sec. 3, Eq. 1: with y_l the unit vectors along the channels of the model's map l, of h_l x w_l
positions, and w_l learned weights of its channels,

    d(x, x') = sum over l of  1 / (h_l w_l)  sum over positions of  w_l . (y_l - y_l')^2

AlexNet's maps are those after each of its five ReLUs; VGG's those after the last ReLU of each
stage. A shift of one pixel, which no one sees, changes a plain model's distance; antialiased trunks
tolerate it (Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", ECCV 2022).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from aa_flax.create import Pretrained, create_model
from aa_flax.errors import InputError
from aa_flax.models.alexnet import AlexNet
from aa_flax.models.backbone import Backbone
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import IMAGENET_MEAN, IMAGENET_STD
from aa_flax.models.shapes import wrong_shape
from aa_flax.models.vgg import VGG
from aa_flax.weights.read import read_weights

# For each family: its file in the package lpips, and the levels up to the last map that is used.
_FILES = {AlexNet: "alex.pth", VGG: "vgg.pth"}
_LEVELS = {AlexNet: range(3), VGG: range(5)}
_CHANNELS = {AlexNet: (64, 192, 384, 256, 256), VGG: (64, 128, 256, 512, 512)}
_EPSILON = 1e-10  # added to the length of a vector, as lpips does


class PerceptualDistance(nnx.Module):
    """LPIPS: how different images look, by features of AlexNet or VGG, plain or antialiased.

    With the plain models and the same weights the numbers are those of the package `lpips`, version
    0.1. Its weights of channels were fitted to human judgements on the *plain* models: with an
    antialiased trunk they are not calibrated again, as those of ST-LPIPS are. Everything is
    differentiable, the weights included.

    Args:
        net: a name, `alexnet` or `vgg16` with any filter size (`alexnet_lpf4`), or such a model of
            `create_model` or its backbone, whose arrays are then shared, not changed.
        pretrained: weights of a model that is given by its name, as `create_model` takes them:
            published ones, a file, the folder of a run; False: random ones.
        channel_weights: a file of the package `lpips` or in the same format; five arrays `(C,)`; or
            None: all 1, the distance without learned weights. Default: the file for this model in
            the installed package `lpips` (`pip install 'aa_flax[lpips]'`), no code of which is run.

    Examples:
        >>> import aa_flax
        >>> import jax
        >>> distance = aa_flax.PerceptualDistance(
        ...     "alexnet", pretrained=False, channel_weights=None
        ... )
        >>> images = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
        >>> jax.eval_shape(distance, images, images).shape  # of distance(images, images)
        (2,)
    """

    def __init__(
        self,
        net: str | Classifier | Backbone = "alexnet_lpf4",
        *,
        pretrained: Pretrained = True,
        channel_weights: str | Path | Sequence[ArrayLike] | None = "lpips",
    ):
        self.net = _trunk(net, pretrained)
        self.net.eval()
        weights = _channel_weights(channel_weights, self.net)
        self.channel_weights = nnx.List(nnx.Param(jnp.asarray(w, jnp.float32)) for w in weights)

    def __call__(
        self, x: Float[Array, "N H W 3"], y: Float[Array, "N H W 3"]
    ) -> Float[Array, " N"]:
        """Returns the distance of each image in `x` to that in `y`; 0 where they are equal.

        Args:
            x, y: RGB images with values in **0..1** (images in -1..1, as `lpips` takes them by
                default, are `(x + 1) / 2` here).
        """
        return self.by_map(x, y).sum(-1)

    def by_map(self, x: Float[Array, "N H W 3"], y: Float[Array, "N H W 3"]) -> Float[Array, "N 5"]:
        """Returns the contribution of each map to the distance, fine to coarse."""
        mean, std = (jnp.array(values, jnp.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
        both = (jnp.concatenate(_checked(x, y)).astype(jnp.float32) - mean) / std
        distances = []
        for features, weights in zip(self.maps(both), self.channel_weights, strict=True):
            first, second = jnp.split(_unit_vectors(features.astype(jnp.float32)), 2)
            distances.append((jnp.square(first - second) @ weights[...]).mean((1, 2)))
        return jnp.stack(distances, -1)

    def maps(self, images: Float[Array, "N H W 3"]) -> list[Float[Array, "N h w C"]]:
        """Returns the trunk's five maps of normalized images."""
        model: Any = self.net.net
        taps = ["stem", "conv2", "conv3", "conv4", "conv5"]  # AlexNet's
        if isinstance(model, VGG):
            taps = [f"conv{i}_{len(stage)}" for i, stage in enumerate(model.stages, 1)]
        return model._maps_named(taps, model._named_blocks(), images)


def _checked(*pair: Any) -> tuple[Array, Array]:
    """Returns two batches of images as JAX arrays, checked to be comparable."""
    for images in pair:
        if not (isinstance(images, np.ndarray | jax.Array) or hasattr(images, "__jax_array__")):
            raise InputError(
                f"images to compare are arrays of JAX or NumPy, (N, H, W, 3), got a "
                f"{type(images).__name__}; convert it, channels last"
            )
    x, y = map(jnp.asarray, pair)
    if x.shape != y.shape or x.dtype != y.dtype:
        raise InputError(
            f"images to compare are two arrays of one shape (N, H, W, 3) and one type, got "
            f"{x.shape} of {x.dtype} and {y.shape} of {y.dtype}"
        )
    if (advice := wrong_shape(x.shape, 3)) is not None:
        raise InputError(f"images to compare are (N, H, W, 3), got {x.shape}; {advice}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"images to compare are floats in 0..1, got {x.dtype}; divide uint8 images by 255"
        )
    return x, y


def _unit_vectors(x: Float[Array, "N h w C"]) -> Float[Array, "N h w C"]:
    """Divides each position's channels by their length; zeros stay, with a gradient of zero."""
    squares = jnp.square(x).sum(-1, keepdims=True)
    lengths = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.where(squares > 0, x / (lengths + _EPSILON), 0)


def _kind(model: Classifier) -> type:
    kind = next((kind for kind in _FILES if isinstance(model, kind)), None)
    if kind is None:
        raise InputError(
            f"the perceptual distance is by features of AlexNet or VGG, not of "
            f"{model.name or type(model).__name__}; give alexnet or vgg16, with _lpf1 to _lpf7 if "
            "it is to tolerate shifts"
        )
    return kind


def _trunk(net: str | Classifier | Backbone, pretrained: Pretrained) -> Backbone:
    """Makes a separate backbone that shares the given arrays, without layers after the last map."""
    if isinstance(net, str):
        levels = _LEVELS[_kind(nnx.eval_shape(lambda: create_model(net)))]
        return create_model(net, pretrained=pretrained, features_only=True, out_indices=levels)
    whole = net.net if isinstance(net, Backbone) else net
    if not isinstance(whole, Classifier):
        raise InputError(
            "a perceptual distance takes a name or a model of create_model, got "
            f"{type(net).__name__}"
        )
    levels = _LEVELS[_kind(whole)]
    copy = nnx.merge(*nnx.split(net))
    if isinstance(copy, Classifier):
        return Backbone(copy, levels)
    if max(copy.out_indices) < max(levels):
        raise InputError(
            f"the perceptual distance uses levels 0 to {max(levels)} of {net.name}, of which "
            f"this backbone has 0 to {max(copy.out_indices)}; give out_indices up to that"
        )
    return copy


def _channel_weights(
    given: str | Path | Sequence[ArrayLike] | None, trunk: Backbone
) -> list[np.ndarray]:
    channels = _CHANNELS[_kind(trunk.net)]
    if given is None:
        return [np.ones(count, np.float32) for count in channels]
    label = "the given channel_weights"
    if isinstance(given, str | Path):
        label = str(given)
        # A file of lpips has `lin0.model.1.weight`, `(1, C, 1, 1)`, and so on.
        arrays = read_weights(_file_of_lpips(trunk.net) if given == "lpips" else given).arrays
        names = [name for name in arrays if name.startswith("lin") and name.endswith("weight")]
        weights = [arrays[name].reshape(-1) for name in sorted(names)]
    else:
        weights = [np.asarray(array, np.float32) for array in given]
    found = [w.shape for w in weights]
    if found != [(count,) for count in channels]:
        raise InputError(
            f"{label}: the maps of {trunk.name} have {', '.join(map(str, channels))} channels, and "
            f"the weights are of shapes {', '.join(map(str, found)) or 'none'}"
        )
    return weights


def _file_of_lpips(model: Classifier) -> Path:
    """Finds the weights of a model in the package lpips, which is not imported."""
    name = model.name.partition("_lpf")[0]
    if name not in ("alexnet", "vgg16"):
        raise InputError(
            "the package lpips has weights for alexnet and vgg16, not for "
            f"{model.name or 'this model'}; give channel_weights=None for none, or five arrays"
        )
    package = find_spec("lpips")
    folders = package.submodule_search_locations if package else None
    if not folders:
        raise InputError(
            "the weights of channels are in the package lpips: pip install 'aa_flax[lpips]', or "
            "give channel_weights, a file or None"
        )
    return Path(folders[0], "weights", "v0.1", _FILES[_kind(model)])
