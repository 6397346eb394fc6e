"""Views of an image that a model is evaluated on: the centre crop, or shifted versions of it.

A set of views is a small frozen object: hashable, so that it is compiled once. Random views depend
only on the seed and the image's index in the data, so neither the batch size nor the order of
images nor the number of devices changes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from aa_flax.data.pixels import center_crop, crop_at
from aa_flax.errors import InputError
from aa_flax.evaluation.shifts import random_offsets, random_uniform, rolled, shift_band_limited

Images = UInt8[Array, "N H W 3"]
Seen = UInt8[Array, "N v h w 3"] | Float[Array, "N v h w 3"]  # values in 0..255


class NeedsSize(Protocol):
    """Crops that need images of `needed_size` pixels on each axis."""

    @property
    def needed_size(self) -> int: ...


class Views(NeedsSize, Protocol):
    """Views of a batch, in `calls` compiled calls of as many views each."""

    @property
    def calls(self) -> int: ...

    def __call__(self, images: Images, batch: Mapping[str, Array], call: Int[Array, ""]) -> Seen:
        """Returns the views `(N, v, h, w, 3)` of one call; traced by JAX.

        Args:
            images: the centre of each image, `image_size` or `needed_size` pixels wide.
            batch: `index` int `(N,)`, each image's index in the data; `center` int `(N, 2)`, the
                offset of its centre crop in `images`.
        """
        ...


@dataclass(frozen=True)
class Center:
    """The centre crop of the resized image, one view."""

    crop_size: int
    calls = 1

    @property
    def needed_size(self) -> int:
        return self.crop_size

    def __call__(self, images, batch, call):
        if "center" not in batch or images.shape[1:3] == (self.crop_size, self.crop_size):
            return center_crop(images, self.crop_size)[:, None]
        return crop_at(images, batch["center"], self.crop_size)[:, None]


@dataclass(frozen=True)
class Crops:
    """Crops at the same offsets `(top, left)` of all images, one view each."""

    crop_size: int
    offsets: tuple[tuple[int, int], ...]

    @property
    def calls(self) -> int:
        return len(self.offsets)

    @property
    def needed_size(self) -> int:
        return self.crop_size + max(max(offset) for offset in self.offsets)

    def __call__(self, images, batch, call):
        offset = jnp.asarray(self.offsets)[call]
        offsets = jnp.broadcast_to(offset, (len(images), 2))
        return crop_at(images, offsets, self.crop_size)[:, None]


def diagonal(crop_size: int, image_size: int) -> Crops:
    """Returns crops at every offset of the diagonal that fits the image (Zhang 2019, fig. 7)."""
    return Crops(crop_size, tuple((i, i) for i in range(image_size - crop_size + 1)))


def grid(crop_size: int, shift_range: int, points: int) -> Crops:
    """Returns crops at `points` x `points` offsets, evenly spaced over 0..shift_range-1."""
    axis = [int(x) for x in np.unique(np.linspace(0, shift_range - 1, points).round())]
    return Crops(crop_size, tuple((top, left) for top in axis for left in axis))


@dataclass(frozen=True)
class Around:
    """The centre crop, then its shifts by every multiple of 1 / `steps` pixels up to `within`.

    Fractions of a pixel are band-limited shifts of the image, before it is cropped; values are then
    floats and may slightly exceed 0..255 at edges.
    """

    crop_size: int
    within: int  # pixels on each axis
    steps: int = 1  # per pixel

    @property
    def shifts(self) -> tuple[tuple[int, int], ...]:
        """Steps by which each crop is moved (down, right); the first is (0, 0)."""
        reach = self.within * self.steps
        axis = range(-reach, reach + 1)
        moved = [(down, right) for down in axis for right in axis if down or right]
        return ((0, 0), *moved)

    @property
    def calls(self) -> int:
        return len(self.shifts)

    @property
    def needed_size(self) -> int:
        return self.crop_size + 2 * self.within + 1  # the centre may be half a pixel off

    def __call__(self, images, batch, call):
        whole, part = jnp.divmod(jnp.asarray(self.shifts)[call], self.steps)
        if self.steps > 1:  # the crop moves by a fraction, so the image moves back by it
            back = jnp.broadcast_to(-part / self.steps, (len(images), 2))
            images = shift_band_limited(images.astype(jnp.float32), back)
        return crop_at(images, batch["center"] + whole, self.crop_size)[:, None]


@dataclass(frozen=True)
class RolledAround(Around):
    """The centre crop, then the same rolled by every shift of `Around`, so that nothing enters."""

    @property
    def needed_size(self) -> int:
        return self.crop_size

    def __call__(self, images, batch, call):
        crops = Center(self.crop_size)(images, batch, call)[:, 0]
        shifts = jnp.broadcast_to(jnp.asarray(self.shifts)[call], (len(images), 2))
        if self.steps == 1:
            return rolled(crops, shifts)[:, None]
        return shift_band_limited(crops.astype(jnp.float32), shifts / self.steps)[:, None]


class _PairsOfViews:
    """Pairs of views, one pair a call."""

    crop_size: int
    passes: int

    @property
    def calls(self) -> int:
        return self.passes

    @property
    def needed_size(self) -> int:
        return self.crop_size


@dataclass(frozen=True)
class ShiftedPairs(_PairsOfViews):
    """Pairs of crops at random offsets: the consistency protocol (Zhang 2019, Sec. 4.1)."""

    crop_size: int
    shift_range: int  # offsets are 0..shift_range-1 pixels on each axis (32 in the paper)
    passes: int = 5
    seed: int = 0
    # Consecutive images that share their offsets; with the batch size, one pair of offsets a batch,
    # as the PyTorch original draws them.
    images_per_draw: int = 1

    @property
    def needed_size(self) -> int:
        return self.crop_size + self.shift_range - 1

    def __call__(self, images, batch, call):
        draw = batch["index"] // self.images_per_draw
        offsets = random_offsets(self.seed, draw, self.passes, self.shift_range)
        pair = jnp.take(offsets, call, axis=1)
        return jnp.stack([crop_at(images, pair[:, i], self.crop_size) for i in (0, 1)], 1)


@dataclass(frozen=True)
class RolledPairs(_PairsOfViews):
    """The centre crop, rolled by two random shifts: content that leaves on one side re-enters."""

    crop_size: int
    shift_range: int  # shifts are -shift_range..shift_range-1 pixels on each axis
    passes: int = 5
    seed: int = 0

    def __call__(self, images, batch, call):
        crops = center_crop(images, self.crop_size)
        offsets = random_offsets(self.seed, batch["index"], self.passes, 2 * self.shift_range)
        pair = jnp.take(offsets, call, axis=1) - self.shift_range
        return jnp.stack([rolled(crops, pair[:, i]) for i in (0, 1)], 1)


@dataclass(frozen=True)
class SubpixelPairs(_PairsOfViews):
    """The centre crop of an image moved by two random fractions of a pixel, band-limited.

    The whole image is moved, then cropped: its border, where the periodic shift mixes opposite
    sides, stays outside the crop. Values are floats and may slightly exceed 0..255 at edges.
    """

    crop_size: int
    passes: int = 5
    seed: int = 0

    def __call__(self, images, batch, call):
        fractions = random_uniform(self.seed, batch["index"], (self.passes, 2, 2))
        pair = jnp.take(fractions, call, axis=1)
        values = images.astype(jnp.float32)
        moved = [shift_band_limited(values, pair[:, i]) for i in (0, 1)]
        return jnp.stack([center_crop(x, self.crop_size) for x in moved], 1)


@dataclass(frozen=True)
class JitteredPairs(_PairsOfViews):
    """Two random squares from anywhere in an image, resized to the crop size (antialiased)."""

    crop_size: int
    scale: float = 0.1  # their sides are (1 - scale)..(1 + scale) crop sizes
    passes: int = 5
    seed: int = 0

    @property
    def needed_size(self) -> int:
        return int(np.ceil(self.crop_size * (1 + self.scale)))

    def squares(self, index, height: int, width: int) -> Float[Array, "N passes 2 3"]:
        """Draws top, left and side of each square, in pixels."""
        u = random_uniform(self.seed, index, (self.passes, 2, 3))
        side = self.crop_size * (1 + self.scale * (2 * u[..., 2] - 1))
        return jnp.stack([u[..., 0] * (height - side), u[..., 1] * (width - side), side], -1)

    def __call__(self, images, batch, call):
        squares = jnp.take(self.squares(batch["index"], *images.shape[1:3]), call, axis=1)
        values = images.astype(jnp.float32)

        @jax.vmap
        def resized(image, square):
            scale, shape = self.crop_size / square[2], (self.crop_size, self.crop_size, 3)
            return jax.image.scale_and_translate(
                image, shape, (0, 1), jnp.stack([scale, scale]), -square[:2] * scale, "linear"
            )

        return jnp.stack([resized(values, squares[:, i]) for i in (0, 1)], 1)


def check_size(views: NeedsSize, height: int, width: int) -> None:
    """Raises an InputError if images of this size are too small for the views."""
    if min(height, width) < views.needed_size:
        raise InputError(
            f"images of {height}x{width} pixels are too small for these crops and shifts: they "
            f"need {views.needed_size}; change config.data.image_size, config.data.crop_size or "
            "config.eval.shift_range"
        )
