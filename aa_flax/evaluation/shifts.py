"""Shifts of images and feature maps by integer and fractional numbers of pixels.

A band-limited shift takes an image of N pixels an axis as one period of the trigonometric
polynomial of lowest frequencies through its values, and multiplies frequency f by
exp(-2 pi i f d / N). At the Nyquist frequency of an even N, where +N/2 and -N/2 are the same
samples, both get half of the amplitude, so that frequency is multiplied by cos(pi d): the result
stays real, integer shifts are exact rolls, and a half-pixel shift removes that one frequency.

Pairs of views (`RandomPairs`, `MovedPairs`) differ by a shift x (down, right): the second shows at
p what the first shows at p - x. A function to maps is equivariant if its map of the second view is
the map of the first, moved by x. Between crops this can be compared where both crops see (Karras et
al., "Alias-Free Generative Adversarial Networks", 2021, App. E.1: the mutually valid region);
between rolled images it can be compared everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from aa_flax.data.pixels import center_crop, crop_at
from aa_flax.errors import InputError

Pair = tuple[Array, Array, Array]  # two views (N, s, s, 3) with values in 0..255; x (N, 2)
LANCZOS = 3  # radius of the filter in pixels, as in the paper's App. E.2


@partial(jax.jit, static_argnames=("passes", "shift_range"))
def random_offsets(
    seed: int, index: Int[Array, " N"], passes: int, shift_range: int
) -> Int[Array, "N passes 2 2"]:
    """Draws (top, left) of two crops for each image and pass, uniform in 0..shift_range-1."""
    draw = partial(jax.random.randint, shape=(passes, 2, 2), minval=0, maxval=shift_range)
    return jax.vmap(lambda i: draw(jax.random.fold_in(jax.random.key(seed), i)))(index)


@partial(jax.jit, static_argnames="shape")
def random_uniform(
    seed: int, index: Int[Array, " N"], shape: tuple[int, ...]
) -> Float[Array, "N ..."]:
    """Draws numbers uniform in [0, 1), an array of `shape` for each image."""
    draw = partial(jax.random.uniform, shape=shape)
    return jax.vmap(lambda i: draw(jax.random.fold_in(jax.random.key(seed), i)))(index)


def rolled(images: Num[Array, "N H W C"], shifts: Int[Array, "N 2"]) -> Num[Array, "N H W C"]:
    """Rolls each image down and right by its own number of pixels."""
    return jax.vmap(lambda image, shift: jnp.roll(image, shift, (0, 1)))(images, shifts)


def shift_band_limited(
    x: Float[Array, "N H W C"], shifts: Float[Array, "N 2"]
) -> Float[Array, "N H W C"]:
    """Moves each image down and right by its own, fractional number of pixels, periodically."""
    return _resampled(x, shifts, shift_matrices)


def _resampled(x: Array, shifts: Array, matrices: Callable[[int, Array], Array]) -> Array:
    """Moves each image by the matrices of its shift along rows and columns."""
    down, right = (matrices(n, shifts[:, i]) for i, n in enumerate(x.shape[1:3]))
    x = jnp.einsum("nij,njwc->niwc", down, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("nij,nhjc->nhic", right, x, precision=lax.Precision.HIGHEST)


def shift_matrices(size: int, shifts: Float[Array, " N"]) -> Float[Array, "N size size"]:
    """Returns, for each shift, the matrix that moves a periodic signal of `size` values by it.

    Unlike an FFT of the images, a matrix product stays on the device that has the image.
    """
    turns = jnp.outer(shifts, jnp.arange(size // 2 + 1, dtype=shifts.dtype)) / size
    factors = jnp.exp(lax.complex(jnp.zeros_like(turns), -2 * jnp.pi * turns))
    if size % 2 == 0:
        factors = factors.at[:, -1].set(jnp.cos(jnp.pi * shifts).astype(factors.dtype))
    moved_impulse = jnp.fft.irfft(factors, size)
    position = jnp.arange(size)
    return moved_impulse[:, (position[:, None] - position) % size]


def lanczos_matrices(
    size: int, shifts: Float[Array, " N"], *, periodic: bool
) -> Float[Array, "N size size"]:
    """Returns, for each shift, the matrix that moves a signal by it with the Lanczos filter."""
    position = jnp.arange(size)
    distance = position[:, None] - position - shifts[:, None, None]
    if periodic:
        distance = (distance + size / 2) % size - size / 2
    taps = jnp.sinc(distance) * jnp.sinc(distance / LANCZOS)
    taps = jnp.where(jnp.abs(distance) < LANCZOS, taps, 0)
    total = taps.sum(-1, keepdims=True)
    return taps / jnp.where(total < 0.5, 1, total)  # less if most of the filter is outside


@dataclass(frozen=True)
class RandomPairs:
    """Two random views: crops at offsets 0..shift_range-1, or rolled by as much either way."""

    crop_size: int
    shift_range: int
    rolled: bool  # the centre crop, so that no new content enters
    passes: int  # pairs per image
    seed: int
    fractional = False

    def __post_init__(self):
        _check_reach("shift_range", self.shift_range, self, most=self.crop_size)

    @property
    def needed_size(self) -> int:
        return self.crop_size + (0 if self.rolled else self.shift_range - 1)

    def __call__(self, images: Array, index: Int[Array, " N"], call: Int[Array, ""]) -> Pair:
        reach = self.shift_range * (2 if self.rolled else 1)
        offsets = random_offsets(self.seed, index, self.passes, reach)[:, call]
        first, second = offsets[:, 0], offsets[:, 1]
        if not self.rolled:
            a, b = (crop_at(images, offset, self.crop_size) for offset in (first, second))
            return a, b, first - second
        centre = center_crop(images, self.crop_size)
        a, b = (rolled(centre, offset - self.shift_range) for offset in (first, second))
        return a, b, second - first


@dataclass(frozen=True)
class MovedPairs:
    """The centre crop, and the same moved by up to `max_shift` pixels on each axis, uniformly."""

    crop_size: int
    max_shift: int
    fractional: bool  # also by fractions of a pixel: shifted band-limited, then cropped
    rolled: bool  # content that leaves the crop on one side enters on the other
    passes: int  # pairs per image
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
            moved = rolled(whole, shifts)
        return centre, center_crop(moved, self.crop_size), shifts


def _check_reach(name: str, reach: int, views: RandomPairs | MovedPairs, *, most: int) -> None:
    if reach > most and not views.rolled:
        raise InputError(
            f"with a {name} of {reach} two crops of {views.crop_size} pixels may have nothing in "
            f"common to compare; give {name} of at most {most}, or rolled=True"
        )


def translated(
    maps: Num[Array, "N s s C"], shifts: Num[Array, "N 2"], *, fractional: bool, periodic: bool
) -> tuple[Array, Bool[Array, "N s s 1"]]:
    """Moves each map by its own shift; also returns where the result is valid.

    Integer shifts move values; fractional ones resample with the Lanczos filter of radius 3, its
    taps normalised to a sum of one (App. E.2). Periodic maps are valid everywhere.
    """
    size = maps.shape[1]
    valid = _valid_region(size, shifts, fractional=fractional, periodic=periodic)
    if not fractional:
        return rolled(maps, shifts), valid
    return _resampled(maps, shifts, partial(lanczos_matrices, periodic=periodic)), valid


def _valid_region(
    size: int, shifts: Array, *, fractional: bool, periodic: bool
) -> Bool[Array, "N s s 1"]:
    """Returns the mutually valid region: App. E.1 for integer shifts, E.2 for fractional ones."""
    if periodic:
        return jnp.ones((len(shifts), size, size, 1), bool)
    source = jnp.arange(size)[:, None, None] - shifts  # position in the map before it was moved
    first, last = (LANCZOS, size - LANCZOS) if fractional else (0, size - 1)
    rows, columns = jnp.moveaxis((source >= first) & (source <= last), -1, 0)
    return (rows.T[:, :, None] & columns.T[:, None, :])[..., None]
