"""A large image tile by tile and whole: how far the two differ, and where."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
from jaxtyping import Float, Shaped

from aa_flax.errors import InputError

_ALIGNED = 32  # what nets subsample by in all, most of them


@dataclass(frozen=True)
class Grid:
    """Square tiles of an image.

    Tiles begin every `tile - overlap` pixels; the last one of a row or column is moved back so that
    it ends within the image. What is left over beyond it, fewer than `unit` pixels on the right and
    below, is cut off the whole image, too: `used` is what both see.

    Attributes:
        size: height and width of the image, in pixels.
        stride: pixels a place of the map: of where tiles may begin, so that places coincide.
    """

    size: tuple[int, int]
    tile: int
    overlap: int
    stride: int

    def __post_init__(self):
        height, width = self.size
        if min(self.size) < self.tile:
            raise InputError(
                f"the image has {width} x {height} pixels and is smaller than a tile of "
                f"{self.tile}; give a smaller --tile_size"
            )
        if not 0 <= self.overlap < self.tile:
            raise InputError(f"--tile_overlap is 0 to {self.tile - 1} pixels, got {self.overlap}")
        for name, value in (("--tile_size", self.tile), ("--tile_overlap", self.overlap)):
            if value % self.stride:
                below = value - value % self.stride
                raise InputError(
                    f"{name} {value} is no multiple of the {self.stride} pixels between places of "
                    f"the map, so that places would not coincide; give {below} or "
                    f"{below + self.stride}"
                )
        if len(self.tiles) == 1:
            raise InputError(
                f"the image of {width} x {height} pixels holds one tile of {self.tile} alone; give "
                "a smaller --tile_size or a larger image"
            )

    @property
    def unit(self) -> int:
        """What moved tiles' places are multiples of: 32 where tiles are, so that `used` is, too."""
        if self.tile % _ALIGNED:
            return self.stride
        return self.stride * _ALIGNED // gcd(self.stride, _ALIGNED)

    def starts(self, length: int) -> list[int]:
        """Where tiles begin on an axis of that many pixels."""
        last = (length - self.tile) // self.unit * self.unit
        return sorted({*range(0, last + 1, self.tile - self.overlap), last})

    @cached_property
    def tiles(self) -> list[tuple[int, int]]:
        """Top and left of each tile, row by row."""
        tops, lefts = (self.starts(length) for length in self.size)
        return [(top, left) for top in tops for left in lefts]

    @property
    def used(self) -> tuple[int, int]:
        """Height and width of what the tiles cover."""
        return self.tiles[-1][0] + self.tile, self.tiles[-1][1] + self.tile

    def depth(self, top: int, left: int) -> Float[np.ndarray, "p p"]:
        """How far each place of a tile's map is from the nearest edge that was cut, in pixels.

        Edges that are the image's own do not count: there both see the same.
        """
        centre = (np.arange(self.tile // self.stride) + 0.5) * self.stride
        axes = []
        for start, length in zip((top, left), self.used, strict=True):
            before = centre if start else np.full_like(centre, np.inf)
            is_last = start + self.tile == length
            after = np.full_like(centre, np.inf) if is_last else self.tile - centre
            axes.append(np.minimum(before, after))
        return np.minimum(axes[0][:, None], axes[1][None])


@dataclass(frozen=True)
class Compared:
    """How tiles differ from the whole, of every place of every tile (m of them in all).

    Attributes:
        depth: pixels to the nearest cut edge.
        difference: the Euclidean distance of the two vectors of channels at the place, divided by
            the root mean square norm of the whole map's vectors; None: of labels.
        same: whether both have the same label (the channel with the largest value, or an integer
            map's value); None: of feature maps.
        difference_map: mean of the differences of all tiles that cover a place, `(h, w)`; of labels
            the share of tiles that have another one.
    """

    grid: Grid
    depth: Float[np.ndarray, " m"]
    difference: Float[np.ndarray, " m"] | None
    same: Shaped[np.ndarray, " m"] | None
    difference_map: Float[np.ndarray, "h w"]

    def numbers(self, border: int) -> dict[str, float | None]:
        """Means and extremes over all places, and over those `border` pixels or more inside.

        All in percent. `..._inside` is None where no place is so far from every cut edge.
        """
        inside, found = self.depth >= border, {}
        if self.difference is not None:
            for end, among in (("", slice(None)), ("_inside", inside)):
                values = self.difference[among]
                found[f"difference{end}"] = _percent(values.mean() if values.size else None)
                found[f"difference_worst{end}"] = _percent(values.max() if values.size else None)
        if self.same is not None:
            for end, among in (("", slice(None)), ("_inside", inside)):
                values = self.same[among]
                found[f"label_agreement{end}"] = _percent(values.mean() if values.size else None)
        return found

    def profile(self) -> dict[str, np.ndarray]:
        """Mean and largest difference by the distance to the nearest cut edge."""
        values = self.difference if self.difference is not None else ~_given(self.same)
        within = np.isfinite(self.depth)
        depth, place = np.unique(self.depth[within], return_inverse=True)
        counts = np.bincount(place)
        largest = np.zeros(len(depth))
        np.maximum.at(largest, place, values[within])
        mean = np.bincount(place, values[within]) / counts
        return {"depth": depth, "mean": mean, "largest": largest}


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * float(value)


def _given(same: np.ndarray | None) -> np.ndarray:
    assert same is not None
    return same


def compare(
    grid: Grid,
    whole: Shaped[np.ndarray, "h w ..."],
    tiles: Iterator[Shaped[np.ndarray, "p p ..."]],
    *,
    labelled: bool,
) -> Compared:
    """The maps of all tiles beside the same places of the map of the whole image.

    Args:
        whole: `(h, w, C)`, or integers `(h, w)`. tiles: their maps, in the order of `grid.tiles`.
        labelled: whether the channels are classes.

    Raises:
        InputError: a map of tiles or of the whole image that has another number of places.
    """
    _check_places(grid, whole.shape, grid.used, "the whole image")
    is_map = whole.ndim == 3
    values = whole.astype(np.float64) if is_map else whole
    scale = np.sqrt(np.square(values).sum(-1).mean()) if is_map else 1.0
    parts: dict[str, list[np.ndarray]] = {"depth": [], "difference": [], "same": []}
    total, covered = np.zeros(whole.shape[:2]), np.zeros(whole.shape[:2])
    for (top, left), tile in zip(grid.tiles, tiles, strict=True):
        _check_places(grid, tile.shape, (grid.tile, grid.tile), "a tile")
        y, x = (slice(n // grid.stride, (n + grid.tile) // grid.stride) for n in (top, left))
        here = values[y, x]
        if is_map:
            shown = np.linalg.norm(tile - here, axis=-1) / max(scale, np.finfo(float).tiny)
            parts["difference"].append(shown.ravel())
            if labelled:
                parts["same"].append((tile.argmax(-1) == here.argmax(-1)).ravel())
        else:
            shown = (tile != here).astype(np.float64)
            parts["same"].append((tile == here).ravel())
        parts["depth"].append(grid.depth(top, left).ravel())
        total[y, x] += shown
        covered[y, x] += 1
    joined = {key: np.concatenate(some) if some else None for key, some in parts.items()}
    return Compared(
        grid, _given(joined["depth"]), joined["difference"], joined["same"], total / covered
    )


def _check_places(grid: Grid, shape: tuple[int, ...], pixels: tuple[int, int], what: str) -> None:
    expected = tuple(n // grid.stride for n in pixels)
    if shape[:2] != expected:
        raise InputError(
            f"{what} of {pixels[1]} x {pixels[0]} pixels has a map of {shape[1]} x {shape[0]} "
            f"places and not of {expected[1]} x {expected[0]}, one every {grid.stride} pixels as "
            "in a tile; take a --tile_size that is a multiple of the net's stride"
        )


def compare_logits(
    whole: Float[np.ndarray, " classes"], tiles: Float[np.ndarray, "n classes"]
) -> dict[str, float | None]:
    """Logits of each tile beside those of the whole image, which have no places.

    Differences are Euclidean distances in percent of the norm of the whole image's logits.
    """
    values = whole.astype(np.float64)
    scale = max(float(np.linalg.norm(values)), np.finfo(float).tiny)
    difference = np.linalg.norm(tiles - values, axis=1) / scale
    return {
        "difference": _percent(difference.mean()),
        "difference_worst": _percent(difference.max()),
        "label_agreement": _percent((tiles.argmax(1) == values.argmax()).mean()),
    }
