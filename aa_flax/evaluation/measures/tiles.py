"""Differences between a large image processed in tiles and as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from aa_flax.data.unlabelled import Pictures
from aa_flax.errors import InputError, integer
from aa_flax.evaluation.measure import Column, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.own_images import PicturesMeasure, PicturesOption, check_one_process
from aa_flax.evaluation.plots.own_images import plot_tiles
from aa_flax.evaluation.predict import Predictor, head_of, in_batches, trunk_of
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import progress_bar

_SHOWN = 640  # pixels of the longer side of the image in the plot


_ALIGNED = 32  # total stride of most models


@dataclass(frozen=True)
class Grid:
    """Square tiles of an image.

    Tiles start every `tile - overlap` pixels; the last one of a row or column is moved back to end
    within the image. The rest, fewer than `unit` pixels on the right and below, is cut off the
    whole image, too: both cover `used`.

    Attributes:
        size: height and width of the image, in pixels.
        stride: pixels per position of the map; tiles start at multiples, so that positions
            coincide.
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
                    f"{name} {value} is not a multiple of the map's stride, {self.stride} pixels, "
                    f"so positions would not coincide; give {below} or {below + self.stride}"
                )
        if len(self.tiles) == 1:
            raise InputError(
                f"the image of {width} x {height} pixels has room for only one tile of "
                f"{self.tile}; give a smaller --tile_size or a larger image"
            )

    @property
    def unit(self) -> int:
        """Alignment of moved tiles: a multiple of 32 if tiles are, so that `used` is one, too."""
        if self.tile % _ALIGNED:
            return self.stride
        return self.stride * _ALIGNED // gcd(self.stride, _ALIGNED)

    def starts(self, length: int) -> list[int]:
        """Returns the offsets of tiles on an axis of that many pixels."""
        last = (length - self.tile) // self.unit * self.unit
        return sorted({*range(0, last + 1, self.tile - self.overlap), last})

    @cached_property
    def tiles(self) -> list[tuple[int, int]]:
        """Top and left of each tile, row by row."""
        tops, lefts = (self.starts(length) for length in self.size)
        return [(top, left) for top in tops for left in lefts]

    @property
    def used(self) -> tuple[int, int]:
        """Height and width of the area that the tiles cover."""
        return self.tiles[-1][0] + self.tile, self.tiles[-1][1] + self.tile

    def depth(self, top: int, left: int) -> Float[np.ndarray, "p p"]:
        """Returns each map position's distance from the nearest cut edge, in pixels.

        The edges of the image itself do not count: there tile and whole image see the same.
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
    """Differences between tiles and the whole image at all m positions of all tiles.

    Attributes:
        depth: pixels to the nearest cut edge.
        difference: Euclidean distance of the two channel vectors at the position, divided by the
            root mean square norm of the whole map's vectors; None for labels.
        same: whether both have the same label (the channel with the largest value, or the value of
            an integer map); None for feature maps.
        difference_map: mean difference of all tiles that cover a position, `(h, w)`; for labels,
            the fraction of tiles with another label.
    """

    depth: Float[np.ndarray, " m"]
    difference: Float[np.ndarray, " m"] | None
    same: Shaped[np.ndarray, " m"] | None
    difference_map: Float[np.ndarray, "h w"]

    def numbers(self, border: int) -> dict[str, float | None]:
        """Computes means and maxima over all positions, and over those `border` pixels inside.

        All in percent. `..._inside` has the value None if no position is that far inside.
        """
        found = {}
        for end, among in (("", slice(None)), ("_inside", self.depth >= border)):
            if self.difference is not None:
                values = self.difference[among]
                found[f"difference{end}"] = 100 * float(values.mean()) if values.size else None
                found[f"difference_worst{end}"] = 100 * float(values.max()) if values.size else None
            if self.same is not None:
                values = self.same[among]
                found[f"label_agreement{end}"] = 100 * float(values.mean()) if values.size else None
        return found

    def profile(self) -> dict[str, np.ndarray]:
        """Computes mean and largest difference by the distance to the nearest cut edge."""
        values = self.difference
        if values is None:
            assert self.same is not None
            values = ~self.same
        within = np.isfinite(self.depth)
        depth, group = np.unique(self.depth[within], return_inverse=True)
        largest = np.zeros(len(depth))
        np.maximum.at(largest, group, values[within])
        mean = np.bincount(group, values[within]) / np.bincount(group)
        return {"depth": depth, "mean": mean, "largest": largest}


def compare(
    grid: Grid,
    whole: Shaped[np.ndarray, "h w ..."],
    tiles: Sequence[Shaped[np.ndarray, "p p ..."]],
    *,
    labelled: bool,
) -> Compared:
    """Compares the maps of all tiles with the same positions of the whole image's map.

    Args:
        whole: `(h, w, C)`, or integers `(h, w)`. tiles: their maps, in the order of `grid.tiles`.
        labelled: whether the channels are classes.

    Raises:
        InputError: a map of a tile or of the whole image with another number of positions.
    """
    _check_map_size(grid, whole.shape, grid.used, "the whole image")
    is_map = whole.ndim == 3
    values = whole.astype(np.float64) if is_map else whole
    scale = np.sqrt(np.square(values).sum(-1).mean()) if is_map else 1.0
    depth, difference, same = [], [], []
    total, covered = np.zeros(whole.shape[:2]), np.zeros(whole.shape[:2])
    for (top, left), tile in zip(grid.tiles, tiles, strict=True):
        _check_map_size(grid, tile.shape, (grid.tile, grid.tile), "a tile")
        y, x = (slice(n // grid.stride, (n + grid.tile) // grid.stride) for n in (top, left))
        here = values[y, x]
        if is_map:
            shown = np.linalg.norm(tile - here, axis=-1) / max(scale, np.finfo(float).tiny)
            difference.append(shown.ravel())
            if labelled:
                same.append((tile.argmax(-1) == here.argmax(-1)).ravel())
        else:
            shown = (tile != here).astype(np.float64)
            same.append((tile == here).ravel())
        depth.append(grid.depth(top, left).ravel())
        total[y, x] += shown
        covered[y, x] += 1
    return Compared(
        np.concatenate(depth),
        np.concatenate(difference) if difference else None,
        np.concatenate(same) if same else None,
        total / covered,
    )


def _check_map_size(grid: Grid, shape: tuple[int, ...], pixels: tuple[int, int], what: str) -> None:
    expected = tuple(n // grid.stride for n in pixels)
    if shape[:2] != expected:
        raise InputError(
            f"{what} of {pixels[1]} x {pixels[0]} pixels has a map of {shape[1]} x {shape[0]} "
            f"positions instead of {expected[1]} x {expected[0]}, one every {grid.stride} pixels "
            "as in a tile; give a --tile_size that is a multiple of the model's stride"
        )


def compare_logits(
    whole: Float[np.ndarray, " classes"], tiles: Float[np.ndarray, "n classes"]
) -> dict[str, float | None]:
    """Compares the logits of each tile with those of the whole image.

    Differences are Euclidean distances in percent of the norm of the whole image's logits.
    """
    values = whole.astype(np.float64)
    scale = max(float(np.linalg.norm(values)), np.finfo(float).tiny)
    difference = np.linalg.norm(tiles - values, axis=1) / scale
    return {
        "difference": 100 * float(difference.mean()),
        "difference_worst": 100 * float(difference.max()),
        "label_agreement": 100 * float((tiles.argmax(1) == values.argmax()).mean()),
    }


class Tiles(PicturesMeasure):
    """Size and location of the differences between tiles of an image and the whole image.

    For a model of this package the last feature map is compared (`forward_features`), and the class
    that its head gives to each tile and to the same part of the whole map. For another function its
    output is compared: maps `(N, h, w, C)` of scores, whose largest is the label; integer labels
    `(N, h, w)`; or logits `(N, classes)` of each tile and of the whole image.
    """

    options = (
        PicturesOption("tiles", "one large image, to compare in tiles and whole"),
        Option("tile_size", "--tiles: pixels of a tile's side; default: the crop size", None, int),
        Option("tile_overlap", "--tiles: pixels by which neighbours overlap", 0, int),
        Option(
            "tile_border",
            "--tiles: distance from a cut edge that counts as inside; default: a quarter tile",
            None,
            int,
        ),
    )
    columns = (
        Column(
            "tiles",
            ("difference",),
            note="mean difference between the maps of tiles and of the whole image, in percent of "
            "the map's root mean square",
        ),
        Column("tiles, inside", ("difference_inside",), note="the same, away from cut edges"),
        Column(
            "labels of tiles",
            ("label_agreement",),
            note="fraction of positions (for a classifier: of tiles) with the same label in the "
            "tile and in the whole image",
        ),
    )
    plot = staticmethod(plot_tiles)
    alike = ("tile_size", "tile_overlap")

    def settings(self, subject: Subject) -> Result:
        tile, border = _sizes(subject)
        sizes = {"tile_size": tile, "tile_border": border}
        return {**_picture(subject).described(), **sizes, "tile_overlap": _overlap(subject)}

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_one_process("tiles")
        pictures = _picture(subject)
        if len(pictures) != 1:
            raise InputError(
                f"--tiles takes one large image, got {len(pictures)}; give the path of one file"
            )
        tile, _ = _sizes(subject)
        width, height = pictures.size(0)
        Grid((height, width), tile, _overlap(subject), 1)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        pictures, (tile, border) = _picture(subject), _sizes(subject)
        pixels = np.asarray(pictures[0]["image"])
        own = isinstance(subject.model, Classifier)
        model = trunk_of(subject.model) if own else subject.predictor
        stride = _stride(model.outputs(pixels[None, :tile, :tile]), tile, model.name)
        grid = Grid(pixels.shape[:2], tile, _overlap(subject), stride)
        pixels = pixels[: grid.used[0], : grid.used[1]]
        whole = model.outputs(pixels[None])[0]
        tiles = _tiles(model, pixels, grid, subject.settings.batch())
        if whole.ndim == 1:
            found, numbers = None, compare_logits(whole, np.stack(tiles))
        else:
            found = compare(grid, whole, tiles, labelled=not own)
            numbers = found.numbers(border)
        if own:
            numbers |= _classes_of_tiles(subject, grid, whole, tiles)
        facts = {
            "size": list(pictures.size(0)[::-1]),
            "used": list(grid.used),
            "num_tiles": len(grid.tiles),
            "stride": stride,
            "lost": pictures.log_lost(),
        }
        stored = {} if found is None else self.store(subject, _arrays(pixels, grid, found))
        return {**facts, **numbers, **stored}

    def line(self, result: Result) -> str:
        parts = [f"{'tiles':12} {result['num_tiles']} tiles of {result['tile_size']} pixels"]
        if "difference" in result:
            parts.append(
                f"difference from the whole {result['difference']:.2f} %, at worst "
                f"{result['difference_worst']:.2f} %"
            )
        if result.get("difference_inside") is not None:
            parts.append(
                f"{result['tile_border']} pixels inside {result['difference_inside']:.2f} %, at "
                f"worst {result['difference_worst_inside']:.2f} %"
            )
        if result.get("label_agreement") is not None:
            parts.append(f"same label {result['label_agreement']:.2f} %")
        return "   ".join(parts)


def _picture(subject: Subject) -> Pictures:
    return Pictures(subject.options["tiles"], "--tiles")


def _sizes(subject: Subject) -> tuple[int, int]:
    """Returns the size of a tile, and the distance to a cut edge that counts as inside."""
    tile, border = subject.options["tile_size"], subject.options["tile_border"]
    tile = subject.settings.crop_size if tile is None else integer("--tile_size", tile, least=1)
    border = tile // 4 if border is None else integer("--tile_border", border, least=0)
    return tile, border


def _overlap(subject: Subject) -> int:
    return integer("--tile_overlap", subject.options["tile_overlap"], least=0)


def _stride(output: np.ndarray, tile: int, name: str) -> int:
    """Returns pixels per position of a tile's map; 1 for logits.

    Raises:
        InputError: neither a map with an integer stride nor logits.
    """
    if output.ndim == 2:
        return 1
    is_labels = output.ndim == 3 and np.issubdtype(output.dtype, np.integer)
    height, width = output.shape[1:3] if output.ndim in (3, 4) else (0, 0)
    if not (is_labels or output.ndim == 4) or height != width or not height or tile % height:
        raise InputError(
            f"{name} gives an array of shape {output.shape} for a tile of {tile} pixels; --tiles "
            "takes maps (N, h, w, C) with an integer stride, labels (N, h, w) or logits (N, "
            "classes); give another --tile_size, a multiple of the model's stride"
        )
    return tile // height


def _tiles(model: Predictor, pixels: np.ndarray, grid: Grid, batch: int) -> list[np.ndarray]:
    """Computes the output for each tile."""
    cut = [pixels[y : y + grid.tile, x : x + grid.tile] for y, x in grid.tiles]
    with progress_bar(len(cut), "tiles", "tile") as bar:
        return list(in_batches(model.outputs, cut, batch, bar))


def _classes_of_tiles(
    subject: Subject, grid: Grid, whole: np.ndarray, tiles: Sequence[np.ndarray]
) -> dict[str, float | None]:
    """Compares the head's classes for each tile's map and for the same part of the whole map."""
    if subject.model.num_classes == 0:
        return {}
    head, step = head_of(subject.model), grid.stride
    size = grid.tile // step
    parts = [whole[y // step :, x // step :][:size, :size] for y, x in grid.tiles]
    of_tiles, of_whole = head(np.stack(tiles)), head(np.stack(parts))
    return {"label_agreement": 100 * float((of_tiles.argmax(1) == of_whole.argmax(1)).mean())}


def _arrays(pixels: np.ndarray, grid: Grid, found: Compared) -> dict[str, np.ndarray]:
    """Returns the data of the plot."""
    shown = Image.fromarray(pixels)
    shown.thumbnail((_SHOWN, _SHOWN))
    return found.profile() | {
        "picture": np.asarray(shown),
        "used": np.array(grid.used),
        "tiles": np.array(grid.tiles),
        "tile": np.array(grid.tile),
        "difference_map": found.difference_map,
        "is_of_labels": np.array(found.difference is None),
    }
