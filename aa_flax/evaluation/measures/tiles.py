"""One large image, tile by tile and whole."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from aa_flax.data.unlabelled import Pictures
from aa_flax.errors import InputError, integer
from aa_flax.evaluation.measure import Column, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.own_images import PicturesMeasure, PicturesOption, check_one_process
from aa_flax.evaluation.plots.own_images import plot_tiles
from aa_flax.evaluation.predict import Predictor, head_of, trunk_of
from aa_flax.evaluation.tiling import Compared, Grid, compare, compare_logits
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import progress_bar

_SHOWN = 640  # pixels of the longer side of the picture in the figure


class Tiles(PicturesMeasure):
    """How far the answers to tiles of an image are from the answer to the whole, and where.

    Of a net of this package its last feature map is compared (`forward_features`), and the class
    that its head gives to each tile and to the same place of the whole map. Of another function,
    what it gives: maps `(N, h, w, C)` of scores, whose largest is the label; labels `(N, h, w)`,
    integers; or logits `(N, classes)`, each tile's beside the whole image's.
    """

    options = (
        PicturesOption("tiles", "one large image, tile by tile and whole"),
        Option("tile_size", "--tiles: pixels of a tile's side; default: the crop size", None, int),
        Option("tile_overlap", "--tiles: pixels that neighbours have in common", 0, int),
        Option(
            "tile_border",
            "--tiles: pixels from a cut edge at which a place is inside; default: a quarter tile",
            None,
            int,
        ),
    )
    columns = (
        Column(
            "tiles",
            ("difference",),
            note="mean difference of maps of tiles from the map of the whole image, in percent of "
            "the map's root mean square",
        ),
        Column("tiles, inside", ("difference_inside",), note="the same away from cut edges"),
        Column(
            "labels of tiles",
            ("label_agreement",),
            note="share of places (of a classifier: of tiles) that have the same label in the "
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
                f"--tiles is one large image, got {len(pictures)}; give the path of one file"
            )
        tile, _ = _sizes(subject)
        width, height = pictures.size(0)
        Grid((height, width), tile, _overlap(subject), 1)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        pictures, (tile, border) = _picture(subject), _sizes(subject)
        pixels = np.asarray(pictures[0]["image"])
        net = trunk_of(subject.model) if _is_net(subject) else subject.predictor
        stride = _stride(net.outputs(pixels[None, :tile, :tile]), tile, net.name)
        grid = Grid(pixels.shape[:2], tile, _overlap(subject), stride)
        pixels = pixels[: grid.used[0], : grid.used[1]]
        whole = net.outputs(pixels[None])[0]
        tiles = list(_tiles(net, pixels, grid, subject.settings.batch()))
        labelled = not _is_net(subject)
        if whole.ndim == 1:
            found, numbers = None, compare_logits(whole, np.stack(tiles))
        else:
            found = compare(grid, whole, iter(tiles), labelled=labelled)
            numbers = found.numbers(border)
        if _is_net(subject):
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


def _is_net(subject: Subject) -> bool:
    return isinstance(subject.model, Classifier)


def _picture(subject: Subject) -> Pictures:
    return Pictures(subject.options["tiles"], "--tiles")


def _sizes(subject: Subject) -> tuple[int, int]:
    """Of a tile, and from what distance to a cut edge on a place is inside."""
    tile, border = subject.options["tile_size"], subject.options["tile_border"]
    tile = subject.settings.crop_size if tile is None else integer("--tile_size", tile, least=1)
    border = tile // 4 if border is None else integer("--tile_border", border, least=0)
    return tile, border


def _overlap(subject: Subject) -> int:
    return integer("--tile_overlap", subject.options["tile_overlap"], least=0)


def _stride(output: np.ndarray, tile: int, name: str) -> int:
    """Pixels a place of the map of a tile; 1 of logits, which have no places.

    Raises:
        InputError: what is no map of whole pixels a place, nor logits.
    """
    if output.ndim == 2:
        return 1
    is_labels = output.ndim == 3 and np.issubdtype(output.dtype, np.integer)
    height, width = output.shape[1:3] if output.ndim in (3, 4) else (0, 0)
    if not (is_labels or output.ndim == 4) or height != width or not height or tile % height:
        raise InputError(
            f"{name} gives an array of shape {output.shape} for a tile of {tile} pixels; --tiles "
            "takes maps (N, h, w, C) whose places are a whole number of pixels apart, labels (N, "
            "h, w) or logits (N, classes); give another --tile_size, a multiple of the net's stride"
        )
    return tile // height


def _tiles(net: Predictor, pixels: np.ndarray, grid: Grid, batch: int) -> Iterator[np.ndarray]:
    """What the net says of each tile, in batches of one size: the last is filled up."""
    cut = [pixels[y : y + grid.tile, x : x + grid.tile] for y, x in grid.tiles]
    batch = min(batch, len(cut))
    with progress_bar(len(cut), "tiles", "tile") as bar:
        for first in range(0, len(cut), batch):
            some = cut[first : first + batch]
            images = np.stack(some + (batch - len(some)) * some[-1:])
            yield from net.outputs(images)[: len(some)]
            bar.update(len(some))


def _classes_of_tiles(
    subject: Subject, grid: Grid, whole: np.ndarray, tiles: Sequence[np.ndarray]
) -> dict[str, float | None]:
    """The head on each tile's map and on the same place of the whole map."""
    if subject.model.num_classes == 0:
        return {}
    head: Callable[[np.ndarray], np.ndarray] = head_of(subject.model)
    places, step = grid.tile // grid.stride, grid.stride
    there = [whole[y // step :, x // step :][:places, :places] for y, x in grid.tiles]
    own, cut = head(np.stack(tiles)), head(np.stack(there))
    return {"label_agreement": 100 * float((own.argmax(1) == cut.argmax(1)).mean())}


def _arrays(pixels: np.ndarray, grid: Grid, found: Compared) -> dict[str, np.ndarray]:
    """What the figure is drawn from."""
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
