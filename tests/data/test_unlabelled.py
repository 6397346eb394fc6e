"""Images of users: accepted ones, their conversion to RGB, refused ones."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import aa_flax
from aa_flax import InputError
from aa_flax.data.unlabelled import listed, lost, open_image
from tests.evaluation.random_images import SIZES, flat, strided


@pytest.fixture
def photo(rng):
    return Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8))


def rotated():
    tag = Image.Exif()
    tag[0x0112] = 6
    return tag


def translucent(photo, mode):
    image = photo.convert(mode)
    image.putalpha(Image.new("L", photo.size, 128))
    return image


def save_sixteen_bits(path, pixels):
    """Writes a colour PPM of 16 bits, which PIL reads but does not write."""
    header = f"P6 {pixels.shape[1]} {pixels.shape[0]} 65535\n".encode()
    path.write_bytes(header + (257 * pixels.astype(">u2")).tobytes())


@pytest.mark.parametrize(
    ("name", "change", "options", "what"),
    [
        ("a.jpg", lambda photo: photo, {"exif": rotated()}, "orientation tag ignored"),
        ("a.png", lambda photo: translucent(photo, "RGB"), {}, "transparency dropped"),
        ("a.png", lambda photo: translucent(photo, "L"), {}, "transparency dropped"),
        ("a.png", lambda photo: photo.quantize(4), {"transparency": 0}, "transparency dropped"),
        ("a.jpg", lambda photo: photo.convert("CMYK"), {}, "CMYK converted without its profile"),
        ("a.tif", lambda photo: photo, "pages", "further frames or pages ignored"),
        ("a.gif", lambda photo: photo, "pages", "further frames or pages ignored"),
        ("a.png", lambda photo: photo, "pages", "further frames or pages ignored"),
        ("a.png", lambda photo: photo, {}, None),
        ("a.jpg", lambda photo: photo.convert("L"), {}, None),
        ("a.png", lambda photo: photo.convert("RGBA"), {}, None),  # opaque
    ],
)
def test_what_an_image_loses_as_rgb_is_counted(tmp_path, photo, name, change, options, what):
    if options == "pages":
        options = {"save_all": True, "append_images": [Image.new("RGB", photo.size)]}
    change(photo).save(tmp_path / name, **options)
    expected = {} if what is None else {what: 1}
    assert lost([tmp_path / name, photo]) == expected
    with Image.open(tmp_path / name) as image:
        assert lost([image]) == expected


def test_sixteen_bits_of_colour_are_counted(tmp_path, photo):
    save_sixteen_bits(tmp_path / "a.ppm", np.asarray(photo))
    assert lost([tmp_path / "a.ppm"]) == {"16 bits cut to 8": 1}
    np.testing.assert_array_equal(open_image(tmp_path / "a.ppm", "a"), photo)


WAYS = {
    "a folder": lambda path: aa_flax.evaluate(flat, path.parent, "images", within=1, **SIZES),
    "a list": lambda path: aa_flax.evaluate(flat, [path], "images", within=1, **SIZES),
    "tiles": lambda path: aa_flax.evaluate(strided, path, "tiles", tile_size=8, **SIZES),
    "a clip": lambda path: aa_flax.evaluate(flat, [path, path], "clip", **SIZES),
    "preprocess": lambda path: aa_flax.preprocess(path, alexnet()),
}


def alexnet():
    return nnx.eval_shape(lambda: aa_flax.create_model("alexnet"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_values_beyond_8_bits_are_refused_whichever_way_they_are_given(tmp_path, way, dtype):
    Image.fromarray(np.full((16, 20), 4000, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(
        InputError, match=r"a\.tif: its values \(mode .*would be clipped to 0\.\.255"
    ):
        WAYS[way](tmp_path / "a.tif")


@pytest.mark.parametrize("way", WAYS)
def test_a_pipe_is_refused_without_waiting(tmp_path, way):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png") as error:
        WAYS[way](tmp_path / "a.png")
    can_skip = way in ("a folder", "a list")
    assert ("on_error=skip" in str(error.value)) == can_skip


@pytest.mark.parametrize("way", ["a list", "a clip", "preprocess"])
def test_paths_of_the_home_folder_are_expanded(tmp_path, photo, way, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    photo.save(tmp_path / "a.png")
    WAYS[way]("~/a.png")


def test_a_broken_image_of_pil_is_named_by_its_number(tmp_path, photo):
    photo.save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with Image.open(tmp_path / "a.png") as broken:
        with pytest.raises(InputError, match="cannot read image image 1: "):
            aa_flax.preprocess([photo, broken], alexnet())
        with pytest.raises(InputError, match="cannot read image image 1: "):
            aa_flax.evaluate(flat, [photo, broken], "images", within=1, **SIZES)


def test_preprocess_warns_of_what_it_loses(photo):
    with pytest.warns(UserWarning, match=r"^of 2 images: transparency dropped \(1\)$"):
        aa_flax.preprocess([photo, translucent(photo, "RGB")], alexnet())


def torch_tensor(array):
    return pytest.importorskip("torch").from_numpy(array)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, torch_tensor])
def test_arrays_of_other_libraries_are_accepted(rng, kind):
    pixels = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(listed(kind(pixels)), pixels)
    for given in (kind(pixels), [kind(image) for image in pixels]):
        found = aa_flax.evaluate(flat, given, "images", within=np.int64(1), **SIZES)["images"]
        assert found["num_images"] == 4
        assert aa_flax.preprocess(given, alexnet()).shape == (4, 224, 224, 3)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, torch_tensor])
def test_channels_first_is_one_error(kind):
    for shape in ((2, 3, 16, 16), (3, 16, 16)):
        given = kind(np.zeros(shape, np.uint8))
        for use in (
            lambda given: aa_flax.evaluate(flat, given, "images", within=1, **SIZES),
            lambda given: aa_flax.preprocess(given, alexnet()),
        ):
            with pytest.raises(
                InputError, match=r"\(N, H, W, 3\); .*if its channels come first, move"
            ):
                use(given)
