"""The evaluation of one large image, in tiles and whole (`--tiles`)."""

import numpy as np
import pytest
from PIL import Image

import aa_flax
from aa_flax import InputError
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.measures.tiles import Grid
from aa_flax.report import gather, write_report
from tests.evaluation.random_images import SIZES, strided
from tests.evaluation.tiny import CLASSES, Small

TILE = 8


class Family(Small):
    """A model like `Small`, defined as families are."""

    __call__ = aa_flax.Classifier.__call__
    forward_head = aa_flax.Classifier.forward_head
    num_classes = CLASSES


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (18, 24, 3), np.uint8)


def measured(predict, image, **options):
    given = {**SIZES, "tile_size": TILE} | options
    return aa_flax.evaluate(predict, image, ("tiles",), name="net", **given)["tiles"]


def test_the_difference_equals_that_of_tiles_compared_one_by_one(image):
    used = np.asarray(normalise(image[None, :16]))
    whole = np.asarray(strided(used))[0]
    error, labels = [], []
    for y in (0, 8):
        for x in (0, 8, 16):
            tile = np.asarray(strided(used[:, y : y + 8, x : x + 8]))[0]
            here = whole[y // 4 : y // 4 + 2, x // 4 : x // 4 + 2]
            error.append(np.linalg.norm(tile - here, axis=-1))
            labels.append(tile.argmax(-1) == here.argmax(-1))
    scale = np.sqrt(np.square(whole).sum(-1).mean())
    found = measured(strided, image, tile_border=4)
    assert found["num_tiles"] == 6
    assert found["stride"] == 4
    assert (found["size"], found["used"]) == ([18, 24], [16, 24])
    assert found["difference"] == pytest.approx(100 * np.mean(error) / scale, rel=1e-4)
    assert found["difference_worst"] == pytest.approx(100 * np.max(error) / scale, rel=1e-4)
    assert found["label_agreement"] == pytest.approx(100 * np.mean(labels))


def test_a_pointwise_model_does_not_differ(image):
    found = measured(lambda x: x[:, ::2, ::2], image)
    assert found["difference"] == pytest.approx(0, abs=1e-4)
    assert found["label_agreement"] == 100


def test_maps_of_labels_are_compared_as_labels(image):
    def labels(x):  # the brightest channel; in a tile's first row, always the first
        return np.argmax(np.asarray(x), -1) * (np.arange(x.shape[1]) > 0)[None, :, None]

    found = measured(labels, image)
    whole = labels(np.asarray(normalise(image[None])))[0]
    wrong = np.count_nonzero(whole[[8, 10]])  # first rows of tiles
    assert found["label_agreement"] == pytest.approx(100 * (1 - wrong / (9 * 8 * 8)))
    assert "difference" not in found


def test_logits_of_tiles_are_compared_with_those_of_the_whole_image(image):
    kernel = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    found = measured(lambda x: x.mean((1, 2)) @ kernel, image)
    pixels = np.asarray(normalise(image[None]))
    logits = pixels.mean((1, 2)) @ kernel
    tiles = [pixels[:, y : y + 8, x : x + 8].mean((1, 2)) for y in (0, 8, 10) for x in (0, 8, 16)]
    error = np.linalg.norm(np.concatenate(tiles) @ kernel - logits, axis=1)
    assert found["difference"] == pytest.approx(100 * error.mean() / np.linalg.norm(logits), 1e-4)


def test_features_and_classes_of_tiles_are_compared_for_a_model(image, tmp_path):
    output = tmp_path / "runs" / "r.json"
    found = measured(Family(), image, output=output)
    assert found["stride"] == 2
    assert found["difference"] > 0
    assert 0 <= found["label_agreement"] <= 100
    rows, _ = gather([output])
    assert "tiles, inside" in write_report(rows, tmp_path / "report").read_text()
    for suffix in (".png", ".pdf", ".svg"):
        assert (tmp_path / "report" / f"tiles{suffix}").stat().st_size > 0


def test_positions_deep_inside_a_tile_do_not_depend_on_the_cut(rng):
    image = rng.integers(0, 256, (48, 48, 3), np.uint8)
    found = measured(Family(), image, tile_size=16, tile_border=3)
    assert found["difference_inside"] == pytest.approx(0, abs=1e-4)  # a kernel of three pixels
    assert found["difference"] > 0.1


def test_tiles_overlap_and_the_last_ends_within_the_image():
    grid = Grid((19, 30), tile=12, overlap=4, stride=2)
    assert grid.starts(19) == [0, 6]
    assert grid.starts(30) == [0, 8, 16, 18]
    assert grid.used == (18, 30)
    depth = grid.depth(0, 8)
    assert depth.shape == (6, 6)
    assert depth[0].tolist() == [1, 3, 5, 5, 3, 1]  # the upper edge is that of the image
    assert depth[5].tolist() == [1] * 6


def test_tiles_of_multiples_of_32_keep_the_whole_image_one():
    assert Grid((100, 133), tile=64, overlap=0, stride=4).used == (96, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 20}, r"has 24 x 18 pixels and is smaller than a tile of 20; give a smaller"),
        ({"tile_size": 0}, r"--tile_size must be an integer of at least 1, got 0"),
        ({"tile_overlap": 8}, r"--tile_overlap is 0 to 7 pixels, got 8"),
        (
            {"tile_overlap": 2},
            r"--tile_overlap 2 is not a multiple of the map's stride, 4 .*give 0 or 4",
        ),
        ({"tile_overlap": -1}, r"--tile_overlap must be an integer of at least 0, got -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(image, options, message):
    with pytest.raises(InputError, match=message):
        measured(strided, image, **options)


def only_tiles(x):
    """A function that fails for larger images."""
    return np.asarray(x).reshape(len(x), TILE, TILE, 3)


def test_an_output_without_positions_is_refused(image, tmp_path):
    with pytest.raises(InputError, match="has room for only one tile of 8"):
        measured(strided, image[:9, :10])
    with pytest.raises(
        InputError, match=r"shape \(1, 3, 3, 3\) for a tile of 8 pixels; --tiles ta"
    ):
        measured(lambda x: x[:, ::3, ::3], image)
    with pytest.raises(InputError, match="only_tiles fails on normalised float32 images 1x18x24"):
        measured(only_tiles, image)
    with pytest.raises(InputError, match=r"--tiles takes one large image, got 2"):
        measured(strided, [image, image])
    with pytest.raises(InputError, match=r"no folder .*nowhere\.png \(--tiles\)"):
        measured(strided, tmp_path / "nowhere.png")
    Image.fromarray(image).save(tmp_path / "a.png")
    assert measured(strided, tmp_path / "a.png")["num_tiles"] == 6


def test_a_map_of_the_whole_image_with_another_stride_is_refused(image):
    def odd(x):
        return x[:, ::2, ::2] if x.shape[1] == TILE else x[:, ::4, ::4]

    with pytest.raises(InputError, match=r"the whole image of 24 x 18 pixels has a map of 6 x 5 p"):
        measured(odd, image)


def test_an_image_beyond_pils_limit_is_refused_with_how_to_take_it(image, tmp_path, monkeypatch):
    Image.fromarray(image).save(tmp_path / "map.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 18 * 24 // 2 - 1)
    with pytest.raises(InputError, match=r"limit of 430 pixels; to .*MAX_IMAGE_PIXELS") as error:
        measured(strided, tmp_path / "map.png")
    assert "on_error" not in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 18 * 24)
    assert measured(strided, tmp_path / "map.png")["num_tiles"] == 6
