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
from aa_flax.evaluation.predict import head_of, in_batches, trunk_of
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
    """

    size: tuple[int, int]  # height and width of the image, in pixels
    tile: int
    overlap: int
    stride: int  # pixels per position of the map; tiles start at multiples: positions coincide

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
        axes, uncut = [], np.full_like(centre, np.inf)
        for start, length in zip((top, left), self.used, strict=True):
            before = centre if start else uncut
            after = self.tile - centre if start + self.tile < length else uncut
            axes.append(np.minimum(before, after))
        return np.minimum(axes[0][:, None], axes[1][None])


def compare(
    grid: Grid,
    whole: Shaped[np.ndarray, "h w ..."],
    tiles: Sequence[Shaped[np.ndarray, "p p ..."]],
    border: int,
    *,
    labelled: bool,
) -> tuple[dict[str, float | None], dict[str, np.ndarray]]:
    """Compares the maps of all tiles with the same positions of the whole image's map.

    The difference at a position is the Euclidean distance of the two channel vectors, divided by
    the root mean square norm of the whole map's vectors; labels differ or not.

    Args:
        whole: `(h, w, C)`, or integers `(h, w)`. tiles: their maps, in the order of `grid.tiles`.
        border: pixels to the nearest cut edge from which on a position is inside.
        labelled: whether the channels are classes; the label is that with the largest value.

    Returns:
        Means and maxima in percent, over all positions and over those inside (None: there are
        none); and the data of the plot, with the mean difference of all tiles at each position.
    """
    _check_map_size(grid, whole.shape, grid.used, "the whole image")
    is_map = whole.ndim == 3
    values = whole.astype(np.float64) if is_map else whole
    scale = np.sqrt(np.square(values).sum(-1).mean()) if is_map else 1.0
    depths, differences, agreements = [], [], []
    total, covered = np.zeros(whole.shape[:2]), np.zeros(whole.shape[:2])
    for (top, left), tile in zip(grid.tiles, tiles, strict=True):
        _check_map_size(grid, tile.shape, (grid.tile, grid.tile), "a tile")
        y, x = (slice(n // grid.stride, (n + grid.tile) // grid.stride) for n in (top, left))
        here = values[y, x]
        if is_map:
            shown = np.linalg.norm(tile - here, axis=-1) / max(scale, np.finfo(float).tiny)
            same = tile.argmax(-1) == here.argmax(-1)
        else:
            shown, same = (tile != here).astype(np.float64), tile == here
        depths.append(grid.depth(top, left).ravel())
        differences.append(shown.ravel())
        agreements.append(same.ravel())
        total[y, x] += shown
        covered[y, x] += 1
    depth, difference, same = map(np.concatenate, (depths, differences, agreements))
    numbers: dict[str, float | None] = {}
    for end, among in (("", depth >= 0), ("_inside", depth >= border)):
        for name, values, reduce, is_known in (
            ("difference", difference, np.mean, is_map),
            ("difference_worst", difference, np.max, is_map),
            ("label_agreement", same, np.mean, labelled or not is_map),
        ):
            if is_known:
                found = values[among]
                numbers[f"{name}{end}"] = 100 * float(reduce(found)) if found.size else None
    shown = {"difference_map": total / covered, "is_of_labels": np.array(not is_map)}
    return numbers, _profile(depth, difference) | shown


def _profile(depth: np.ndarray, difference: np.ndarray) -> dict[str, np.ndarray]:
    """Computes mean and largest difference by the distance to the nearest cut edge."""
    within = np.isfinite(depth)
    distance, group = np.unique(depth[within], return_inverse=True)
    largest = np.zeros(len(distance))
    np.maximum.at(largest, group, difference[within])
    mean = np.bincount(group, difference[within]) / np.bincount(group)
    return {"depth": distance, "mean": mean, "largest": largest}


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
        return {**_picture(subject).described(), **_sizes(subject)}

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_one_process("tiles")
        pictures = _picture(subject)
        if len(pictures) != 1:
            raise InputError(
                f"--tiles takes one large image, got {len(pictures)}; give the path of one file"
            )
        width, height = pictures.size(0)
        sizes = _sizes(subject)
        Grid((height, width), sizes["tile_size"], sizes["tile_overlap"], 1)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        pictures, sizes = _picture(subject), _sizes(subject)
        tile, pixels = sizes["tile_size"], np.asarray(pictures[0]["image"])
        own = isinstance(subject.model, Classifier)
        model = trunk_of(subject.model) if own else subject.predictor
        stride = _stride(model.outputs(pixels[None, :tile, :tile]), tile, model.name)
        grid = Grid(pixels.shape[:2], tile, sizes["tile_overlap"], stride)
        pixels = pixels[: grid.used[0], : grid.used[1]]
        whole = model.outputs(pixels[None])[0]
        cut = [pixels[y : y + tile, x : x + tile] for y, x in grid.tiles]
        with progress_bar(len(cut), "tiles", "tile") as bar:
            tiles = list(in_batches(model.outputs, cut, subject.settings.batch(), bar))
        arrays = {}
        if whole.ndim == 1:
            numbers = compare_logits(whole, np.stack(tiles))
        else:
            border = sizes["tile_border"]
            numbers, arrays = compare(grid, whole, tiles, border, labelled=not own)
        if own and subject.model.num_classes:
            # The head's class for each tile's map, and for the same part of the whole map.
            head, size = head_of(subject.model), tile // stride
            parts = [whole[y // stride :, x // stride :][:size, :size] for y, x in grid.tiles]
            same = head(np.stack(tiles)).argmax(1) == head(np.stack(parts)).argmax(1)
            numbers["label_agreement"] = 100 * float(same.mean())
        facts = {
            "size": list(pictures.size(0)[::-1]),
            "used": list(grid.used),
            "num_tiles": len(grid.tiles),
            "stride": stride,
            "lost": pictures.log_lost(),
        }
        if arrays:
            shown = Image.fromarray(pixels)
            shown.thumbnail((_SHOWN, _SHOWN))
            arrays |= {"picture": np.asarray(shown), "used": np.array(grid.used)}
            arrays |= {"tiles": np.array(grid.tiles), "tile": np.array(tile)}
            facts |= self.store_and_plot(subject, arrays)
        return {**facts, **numbers}

    def line(self, result: Result) -> str:
        parts = [f"{'tiles':12} {result['num_tiles']} tiles of {result['tile_size']} pixels"]
        for end, where in (
            ("", "difference from the whole"),
            ("_inside", f"{result.get('tile_border')} pixels inside"),
        ):
            if (mean := result.get(f"difference{end}")) is not None:
                worst = result[f"difference_worst{end}"]
                parts.append(f"{where} {mean:.2f} %, at worst {worst:.2f} %")
        if result.get("label_agreement") is not None:
            parts.append(f"same label {result['label_agreement']:.2f} %")
        return "   ".join(parts)


def _picture(subject: Subject) -> Pictures:
    return Pictures(subject.options["tiles"], "--tiles")


def _sizes(subject: Subject) -> dict[str, int]:
    """Returns the options in pixels; by default, a tile is a crop and its border a quarter."""
    least = {"tile_size": 1, "tile_overlap": 0, "tile_border": 0}
    given = {name: subject.options[name] for name in least if subject.options[name] is not None}
    sizes = {name: integer(f"--{name}", value, least=least[name]) for name, value in given.items()}
    tile = sizes.setdefault("tile_size", subject.settings.crop_size)
    return {"tile_border": tile // 4, **sizes}


def _stride(output: np.ndarray, tile: int, name: str) -> int:
    """Returns pixels per position of a tile's map; 1 for logits."""
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
