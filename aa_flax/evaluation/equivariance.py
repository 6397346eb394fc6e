"""Maps of internal shift-equivariance: which layers move their features as the image moves.

Zhang (2019, Sec. 3 and 4.1, fig. 5) compares, for a feature map F and a shift (dh, dw),

    Shift(F(X))   with   F(Shift(X))

by their cosine distance; a layer is equivariant if both agree. Here the image is rolled by integer
pixels and every layer pads circularly, as in the paper (the weights may have been trained with
another padding), and F(X) is moved by (dh, dw) / stride pixels of the map, periodically. The paper
upsamples the maps to the image's resolution for that, but does not say how. Here the fractional
shift is band-limited (`shift_band_limited`): it is exact for features without aliasing, so any
distance comes from the layer; nearest-neighbour or linear interpolation would add its own error.
The distance is 1 - cos of the channel vectors, averaged over the positions of the map. Shifts by
multiples of the stride are integer shifts of the map: there the distance is zero for every layer.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from tqdm import tqdm

from aa_flax.data.batches import Batch
from aa_flax.data.pixels import center_crop, normalise
from aa_flax.errors import InputError
from aa_flax.evaluation.predict import predictor_of
from aa_flax.evaluation.results import save_arrays
from aa_flax.evaluation.shifts import shift_band_limited
from aa_flax.models.classifier import Classifier
from aa_flax.ops import circular_padding
from aa_flax.runtime import put_batch, replicate, replicated


@dataclass(frozen=True)
class EquivarianceMaps:
    """Cosine distances of B - 1 blocks and the logits at every offset of a period of P pixels."""

    blocks: tuple[str, ...]  # the last is `logits`, a map of one pixel: its invariance
    strides: tuple[int, ...]  # pixels of the image in one of the block's map
    maps: Float[np.ndarray, "B P P"]  # mean over the images, at (down, right)
    scale: Float[np.ndarray, " B"]  # mean distance between two different images

    @property
    def relative(self) -> Float[np.ndarray, "B P P"]:
        """The maps relative to the distance between two different images at each block."""
        return self.maps / self.scale[:, None, None]

    def save(self, path: Path) -> None:
        """Writes the attributes to an .npz file."""
        save_arrays(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> "EquivarianceMaps":
        """Reads a file of `save`."""
        with np.load(path) as file:
            blocks, strides = file["blocks"].tolist(), file["strides"].tolist()
            return cls(tuple(blocks), tuple(strides), file["maps"], file["scale"])


def equivariance_maps(
    model: Classifier, batch: Batch, *, crop_size: int, mesh: Mesh, progress: tqdm | None = None
) -> EquivarianceMaps:
    """Measures every block of a model at all offsets of its largest stride, on one batch.

    Args:
        model: its batch norms use their running statistics.
        batch: of `evaluation_batches`, at least two images; masked images do not count.
        crop_size: side of the centre crop, a multiple of the largest stride.
        progress: a bar, advanced by one each offset; its total is set.

    Raises:
        InputError: a crop size that is not a multiple of the largest stride.
    """
    period, strides = check_crop(model, crop_size), block_strides(model)
    model.eval()
    graphdef, state = nnx.split(model)
    state = replicate(state, mesh)
    on_device = put_batch(batch, mesh)
    images, mask = center_crop(on_device["image"], crop_size), on_device["mask"]
    features = _features(graphdef, state, images)
    blocks = (*(name for name, _ in model.named_blocks()), "logits")
    maps = np.zeros((len(features), period, period))
    if progress is not None:
        progress.reset(period**2)
    for offset in np.ndindex(period, period):
        maps[:, *offset] = _distances(
            graphdef, state, images, features, mask, jnp.array(offset), strides, mesh
        )
        if progress is not None:
            progress.update()
    scale = np.asarray(_distances_between_images(features, mask, mesh), np.float64)
    if not (np.isfinite(maps).all() and np.isfinite(scale).all()):
        raise InputError(
            "the model's features are not finite; its weights are broken, or its training diverged"
        )
    return EquivarianceMaps(blocks, (*strides, crop_size), maps, scale)


def check_crop(model: Classifier, crop_size: int) -> int:
    """Returns the period of a model's strides in pixels; the crop has to be a multiple of it.

    Raises:
        InputError: it is not; the message names the nearest crops that are.
    """
    period = math.lcm(*block_strides(model))
    if crop_size % period == 0:
        return period

    def can_process(size: int) -> bool:
        with suppress(InputError):
            return predictor_of(model).num_classes(size) > 0
        return False

    below, above = crop_size // period * period, -(-crop_size // period) * period
    sizes = [str(size) for size in (above, below) if size and can_process(size)]
    advice = f"give --config.data.crop_size={' or '.join(sizes)}" if sizes else "none is near"
    raise InputError(
        f"equivariance maps need a crop size that is a multiple of the model's stride, {period} "
        f"pixels, got {crop_size}; {advice} (and a config.data.image_size of at least that)"
    )


# Sizes of images, tried one after another until every stride divides.
_SIZES = (256, 256 * 3, 256 * 5, 256 * 7, 256 * 15)


def block_strides(model: Classifier) -> tuple[int, ...]:
    """Infers the stride of each block's map from shapes; nothing is computed.

    A block without a stride, whose map has one size for images of any size, is an InputError.

    Raises:
        InputError: a block without a stride, whose map has one size for images of any size.
    """
    graphdef, state = nnx.split(model)

    def map_sizes(size: int) -> list[int]:
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        maps = jax.eval_shape(partial(_block_maps, graphdef), state, images)
        return [x.shape[1] for x in maps]

    for size in _SIZES:
        maps, larger = map_sizes(size), map_sizes(2 * size)
        if all(size % a == 0 and b == 2 * a for a, b in zip(maps, larger, strict=True)):
            return tuple(size // n for n in maps)
    name = getattr(model, "name", "") or type(model).__name__
    raise InputError(
        f"equivariance maps need blocks with an integer stride; those of {name} return maps of "
        f"{map_sizes(_SIZES[0])} pixels for images of {_SIZES[0]}"
    )


@partial(jax.jit, static_argnames="graphdef")
def _features(graphdef: nnx.GraphDef, state: nnx.State, images: Array) -> list[Array]:
    """Computes each block's output, and the logits as a map of one pixel; padding is circular."""
    x = normalise(images)
    model: Any = nnx.merge(graphdef, state, copy=True)
    with circular_padding():
        logits = model(x)[:, None, None]
    return [x.astype(jnp.float32) for x in (*_block_maps(graphdef, state, x), logits)]


def _block_maps(graphdef: nnx.GraphDef, state: nnx.State, x: Array) -> list[Array]:
    model: Any = nnx.merge(graphdef, state, copy=True)
    features = []
    with circular_padding():
        for _, block in model.named_blocks():
            x = block(x)
            features.append(x)
    return features


@partial(jax.jit, static_argnames=("graphdef", "strides", "mesh"))
def _distances(
    graphdef, state, images, features, mask, offset, strides: tuple[int, ...], mesh
) -> Float[Array, " B"]:
    """Computes the distance of each block at one offset, mean over the images."""
    rolled = jnp.roll(images, offset, (1, 2))
    distances, of_rolled = [], _features(graphdef, state, rolled)
    all_strides = (*strides, images.shape[1])  # the logits are one pixel
    for still, moved, stride in zip(features, of_rolled, all_strides, strict=True):
        shifts = jnp.broadcast_to(offset / stride, (len(images), 2))
        distance = cosine_distance(shift_band_limited(still, shifts), moved)
        distances.append(jnp.mean(distance, where=mask))
    return lax.with_sharding_constraint(jnp.stack(distances), replicated(mesh))


@partial(jax.jit, static_argnames="mesh")
def _distances_between_images(features, mask, mesh) -> Float[Array, " B"]:
    """Computes the distance between images at each block, mean over all pairs."""
    steps = range(1, len(mask))
    both = jnp.stack([mask & jnp.roll(mask, i) for i in steps])
    distances = []
    for feature in features:
        pairs = [cosine_distance(feature, jnp.roll(feature, i, 0)) for i in steps]
        distances.append(jnp.mean(jnp.stack(pairs), where=both))
    return lax.with_sharding_constraint(jnp.stack(distances), replicated(mesh))


def cosine_distance(x: Float[Array, "N h w C"], y: Float[Array, "N h w C"]) -> Float[Array, " N"]:
    """Computes 1 - cos of the angle between channel vectors, mean over positions.

    Between two zero vectors it is 0, between a zero and another vector 1.
    """
    lengths = jnp.linalg.norm(jnp.stack([x, y]), axis=-1)
    # A shifted zero is zero only up to rounding.
    zero = lengths <= 1e-5 * lengths.max((0, 2, 3), keepdims=True)
    cosine = (x * y).sum(-1) / jnp.where(zero.any(0), 1, lengths[0] * lengths[1])
    distance = jnp.where(zero.any(0), (zero[0] != zero[1]).astype(x.dtype), 1 - cosine)
    return distance.mean((1, 2))
