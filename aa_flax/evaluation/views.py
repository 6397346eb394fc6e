"""What a net is shown of each image: the centre, or the image moved in one way or another.

A set of views is a small frozen object: hashable, so that a net compiles once for it; what is
random in it follows from its seed and the image's place in the data alone, so neither the batch
size nor the order of images nor the number of devices changes what is seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from aa_flax.data.pixels import center_crop, crop_at
from aa_flax.errors import InputError
from aa_flax.evaluation.bandlimited import shift_band_limited

Images = UInt8[Array, "N H W 3"]
Seen = UInt8[Array, "N v h w 3"] | Float[Array, "N v h w 3"]  # values in 0..255


class NeedsSize(Protocol):
    """What is cut from images."""

    @property
    def needed_size(self) -> int:
        """Pixels an image must have on each axis."""
        ...


class Views(NeedsSize, Protocol):
    """What the net sees of a batch, a few views a compiled call."""

    @property
    def calls(self) -> int:
        """Calls it takes to see all views; each gives as many."""
        ...

    def __call__(self, images: Images, batch: Mapping[str, Array], call: Int[Array, ""]) -> Seen:
        """The views `(N, v, h, w, 3)` of one call, traced by JAX.

        Args:
            images: the centre of `image_size` pixels of each image, or `needed_size` of them.
            batch: `index` int `(N,)`, each image's place in the data; `center` int `(N, 2)`,
                where in `images` its centre crop lies.
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
    """Crops at the same offsets `(top, left)` for all images, one view each."""

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
    """Crops at every offset of the diagonal that the image has room for (Zhang 2019, fig. 7)."""
    return Crops(crop_size, tuple((i, i) for i in range(image_size - crop_size + 1)))


def grid(crop_size: int, shift_range: int, points: int) -> Crops:
    """Crops at a grid of `points` by `points` offsets, evenly over 0..shift_range-1."""
    axis = [int(x) for x in np.unique(np.linspace(0, shift_range - 1, points).round())]
    return Crops(crop_size, tuple((top, left) for top in axis for left in axis))


@dataclass(frozen=True)
class Around:
    """The centre crop, then that moved by every whole number of pixels up to `within` on each axis.

    One view each, `(2 * within + 1) ** 2` of them.
    """

    crop_size: int
    within: int

    @property
    def shifts(self) -> tuple[tuple[int, int], ...]:
        """By how many pixels each crop is moved (down, right); the first is (0, 0)."""
        axis = range(-self.within, self.within + 1)
        moved = [(down, right) for down in axis for right in axis if down or right]
        return ((0, 0), *moved)

    @property
    def calls(self) -> int:
        return (2 * self.within + 1) ** 2

    @property
    def needed_size(self) -> int:
        return self.crop_size + 2 * self.within + 1  # the centre may lie half a pixel off

    def __call__(self, images, batch, call):
        shift = jnp.asarray(self.shifts)[call]
        return crop_at(images, batch["center"] + shift, self.crop_size)[:, None]


@dataclass(frozen=True)
class ShiftedPairs:
    """Pairs of crops at random offsets: the consistency protocol (Zhang 2019, Sec. 4.1).

    Attributes:
        shift_range: offsets are drawn from 0..shift_range-1 pixels on each axis (32 in the paper).
        passes: pairs for each image; each pair is one call.
        images_per_draw: consecutive images that share their offsets. 1: each has its own. The
            batch size: the original's draw, one pair of offsets a batch.
    """

    crop_size: int
    shift_range: int
    passes: int = 5
    seed: int = 0
    images_per_draw: int = 1

    @property
    def calls(self) -> int:
        return self.passes

    @property
    def needed_size(self) -> int:
        return self.crop_size + self.shift_range - 1

    def __call__(self, images, batch, call):
        draw = batch["index"] // self.images_per_draw
        offsets = random_offsets(self.seed, draw, self.passes, self.shift_range)
        pair = jnp.take(offsets, call, axis=1)
        return jnp.stack([crop_at(images, pair[:, i], self.crop_size) for i in (0, 1)], 1)


@dataclass(frozen=True)
class RolledPairs:
    """The centre crop, rolled by two random shifts: what leaves on one side enters on the other.

    Attributes:
        shift_range: shifts are drawn from -shift_range..shift_range-1 pixels on each axis.
    """

    crop_size: int
    shift_range: int
    passes: int = 5
    seed: int = 0

    @property
    def calls(self) -> int:
        return self.passes

    @property
    def needed_size(self) -> int:
        return self.crop_size

    def __call__(self, images, batch, call):
        crops = center_crop(images, self.crop_size)
        offsets = random_offsets(self.seed, batch["index"], self.passes, 2 * self.shift_range)
        pair = jnp.take(offsets, call, axis=1) - self.shift_range
        roll = jax.vmap(lambda image, shift: jnp.roll(image, shift, (0, 1)))
        return jnp.stack([roll(crops, pair[:, i]) for i in (0, 1)], 1)


@dataclass(frozen=True)
class SubpixelPairs:
    """The centre crop of an image moved by two random fractions of a pixel, band-limited.

    The whole image is moved, then cropped: its border, where the periodic shift mixes opposite
    sides, stays outside the crop. Values are floats and may leave 0..255 a little at edges.
    """

    crop_size: int
    passes: int = 5
    seed: int = 0

    @property
    def calls(self) -> int:
        return self.passes

    @property
    def needed_size(self) -> int:
        return self.crop_size

    def __call__(self, images, batch, call):
        fractions = random_uniform(self.seed, batch["index"], (self.passes, 2, 2))
        pair = jnp.take(fractions, call, axis=1)
        values = images.astype(jnp.float32)
        moved = [shift_band_limited(values, pair[:, i]) for i in (0, 1)]
        return jnp.stack([center_crop(x, self.crop_size) for x in moved], 1)


@dataclass(frozen=True)
class JitteredPairs:
    """Two random squares of an image, resized to the crop size (bilinear, antialiased).

    Attributes:
        scale: the squares' sides are drawn from (1 - scale)..(1 + scale) crop sizes, their places
            from all that lie within the image.
    """

    crop_size: int
    scale: float = 0.1
    passes: int = 5
    seed: int = 0

    @property
    def calls(self) -> int:
        return self.passes

    @property
    def needed_size(self) -> int:
        return int(np.ceil(self.crop_size * (1 + self.scale)))

    def squares(self, index, height: int, width: int) -> Float[Array, "N passes 2 3"]:
        """Top, left and side, in pixels."""
        u = random_uniform(self.seed, index, (self.passes, 2, 3))
        side = self.crop_size * (1 + self.scale * (2 * u[..., 2] - 1))
        return jnp.stack([u[..., 0] * (height - side), u[..., 1] * (width - side), side], -1)

    def __call__(self, images, batch, call):
        squares = jnp.take(self.squares(batch["index"], *images.shape[1:3]), call, axis=1)
        resize = jax.vmap(partial(_resized_square, size=self.crop_size))
        values = images.astype(jnp.float32)
        return jnp.stack([resize(values, squares[:, i]) for i in (0, 1)], 1)


def _resized_square(image: Array, square: Array, size: int) -> Array:
    scale = size / square[2]
    shape = (size, size, image.shape[-1])
    return jax.image.scale_and_translate(
        image, shape, (0, 1), jnp.stack([scale, scale]), -square[:2] * scale, method="linear"
    )


@partial(jax.jit, static_argnames=("passes", "shift_range"))
def random_offsets(
    seed: int, index: Int[Array, " N"], passes: int, shift_range: int
) -> Int[Array, "N passes 2 2"]:
    """Offsets (top, left) of two crops for each image and pass, uniform in 0..shift_range-1."""

    def draw(i):
        key = jax.random.fold_in(jax.random.key(seed), i)
        return jax.random.randint(key, (passes, 2, 2), 0, shift_range)

    return jax.vmap(draw)(index)


@partial(jax.jit, static_argnames="shape")
def random_uniform(
    seed: int, index: Int[Array, " N"], shape: tuple[int, ...]
) -> Float[Array, "N ..."]:
    """Numbers uniform in [0, 1), `shape` of them for each image."""

    def draw(i):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), i), shape)

    return jax.vmap(draw)(index)


def check_size(views: NeedsSize, height: int, width: int) -> None:
    """Raises InputError if images of that size are too small for the views."""
    if min(height, width) < views.needed_size:
        raise InputError(
            f"images of {height}x{width} pixels are too small for these crops and shifts: they "
            f"need {views.needed_size}; change config.data.image_size, config.data.crop_size or "
            "config.eval.shift_range"
        )
