"""Maps of images that were moved: pairs of views, and the translation that maps them on each other.

Two views of an image differ by a shift x (down, right) in pixels: the second shows at p what the
first shows at p - x. A function to maps is equivariant where its map of the second view is the
first's, moved by x. Between crops that can be said where both crops see (Karras et al., "Alias-Free
Generative Adversarial Networks", 2021, App. E.1: the mutually valid region); of rolled images it
can be said everywhere.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aa_flax.data.pixels import center_crop, crop_at
from aa_flax.errors import InputError
from aa_flax.evaluation.bandlimited import shift_band_limited
from aa_flax.evaluation.views import random_offsets, random_uniform

Pair = tuple[Array, Array, Array]  # two views (N, s, s, 3) with values in 0..255; x (N, 2)
LANCZOS = 3  # the filter's reach in pixels, as in the paper's App. E.2


@dataclass(frozen=True)
class RandomPairs:
    """Both views at random: crops at offsets 0..shift_range-1, or rolled by as much either way.

    Attributes:
        rolled: the centre crop is rolled; no new content comes in.
        passes: pairs of each image. seed: with the image's place, it fixes them.
    """

    crop_size: int
    shift_range: int
    rolled: bool
    passes: int
    seed: int
    fractional = False

    def __post_init__(self):
        _check_reach("shift_range", self.shift_range, self, most=self.crop_size)

    @property
    def needed_size(self) -> int:
        return self.crop_size + (0 if self.rolled else self.shift_range - 1)

    def __call__(self, images: Array, index: Int[Array, " N"], call: Int[Array, ""]) -> Pair:
        reach = self.shift_range * (2 if self.rolled else 1)
        first, second = jnp.moveaxis(
            random_offsets(self.seed, index, self.passes, reach)[:, call], 1, 0
        )
        if not self.rolled:
            a, b = (crop_at(images, offset, self.crop_size) for offset in (first, second))
            return a, b, first - second
        centre = center_crop(images, self.crop_size)
        a, b = (_rolled(centre, offset - self.shift_range) for offset in (first, second))
        return a, b, second - first


@dataclass(frozen=True)
class MovedFromCentre:
    """The centre crop, and the same moved by up to `max_shift` pixels on each axis, uniformly.

    Attributes:
        fractional: by fractions of a pixel, too. The image is then moved as a band-limited periodic
            signal (`shift_band_limited`), and cropped afterwards unless it is rolled.
        rolled: what leaves the crop on one side enters on the other.
        passes: pairs of each image. seed: with the image's place, it fixes them.
    """

    crop_size: int
    max_shift: int
    fractional: bool
    rolled: bool
    passes: int
    seed: int

    def __post_init__(self):
        border = 2 * LANCZOS if self.fractional else 1
        _check_reach("max_shift", self.max_shift, self, most=self.crop_size - border)

    @property
    def needed_size(self) -> int:
        return self.crop_size + (0 if self.rolled else 2 * self.max_shift)

    def __call__(self, images: Array, index: Int[Array, " N"], call: Int[Array, ""]) -> Pair:
        centre = center_crop(images, self.crop_size)
        whole = centre if self.rolled else images
        if self.fractional:
            uniform = random_uniform(self.seed, index, (self.passes, 2))[:, call]
            shifts = self.max_shift * (2 * uniform - 1)
            moved = shift_band_limited(whole.astype(jnp.float32), shifts)
        else:
            drawn = random_offsets(self.seed, index, self.passes, 2 * self.max_shift + 1)
            shifts = drawn[:, call, 0] - self.max_shift
            moved = _rolled(whole, shifts)
        return centre, center_crop(moved, self.crop_size), shifts


def _check_reach(name: str, reach: int, views: RandomPairs | MovedFromCentre, *, most: int) -> None:
    if reach > most and not views.rolled:
        raise InputError(
            f"with a {name} of {reach} two crops of {views.crop_size} pixels may have nothing in "
            f"common to compare; give {name} of at most {most}, or rolled=True"
        )


def translated(
    maps: Float[Array, "N s s C"] | Int[Array, "N s s C"],
    shifts: Float[Array, "N 2"] | Int[Array, "N 2"],
    *,
    fractional: bool,
    rolled: bool,
) -> tuple[Array, Bool[Array, "N s s 1"]]:
    """Each map moved by its own shift, and where the result is known.

    Whole shifts move values; fractions are resampled with the Lanczos filter of reach 3, its taps
    normalised to a sum of one (App. E.2). Rolled maps are periodic and known everywhere.
    """
    size = maps.shape[1]
    known = _known(size, shifts, fractional=fractional, rolled=rolled)
    if not fractional:
        return _rolled(maps, shifts), known
    down, right = (lanczos_matrices(size, shifts[:, i], periodic=rolled) for i in (0, 1))
    maps = jnp.einsum("npq,nqwc->npwc", down, maps, precision="highest")
    return jnp.einsum("npq,nhqc->nhpc", right, maps, precision="highest"), known


def _known(size: int, shifts: Array, *, fractional: bool, rolled: bool) -> Bool[Array, "N s s 1"]:
    """The mutually valid region: of App. E.1 for whole shifts, of E.2 for fractions."""
    if rolled:
        return jnp.ones((len(shifts), size, size, 1), bool)
    place = jnp.arange(size)[:, None, None] - shifts  # in the map before it was moved
    first, last = (LANCZOS, size - LANCZOS) if fractional else (0, size - 1)
    rows, columns = jnp.moveaxis((place >= first) & (place <= last), -1, 0)
    return (rows.T[:, :, None] & columns.T[:, None, :])[..., None]


def lanczos_matrices(
    size: int, shifts: Float[Array, " N"], *, periodic: bool
) -> Float[Array, "N size size"]:
    """For each shift the matrix that moves a signal of `size` values by it, by Lanczos' filter."""
    place = jnp.arange(size)
    distance = place[:, None] - place - shifts[:, None, None]
    if periodic:
        distance = (distance + size / 2) % size - size / 2
    taps = jnp.sinc(distance) * jnp.sinc(distance / LANCZOS)
    taps = jnp.where(jnp.abs(distance) < LANCZOS, taps, 0)
    total = taps.sum(-1, keepdims=True)
    return taps / jnp.where(total < 0.5, 1, total)  # less where most of it lies outside


def _rolled(images: Array, shifts: Int[Array, "N 2"]) -> Array:
    return jax.vmap(lambda image, shift: jnp.roll(image, shift, (0, 1)))(images, shifts)
