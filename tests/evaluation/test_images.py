"""The stability of predictions on images without labels (`--images`)."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import aa_flax
from aa_flax import InputError
from aa_flax.data.unlabelled import Pictures
from aa_flax.evaluation.views import random_offsets
from aa_flax.report import gather, write_report
from tests.evaluation.random_images import SIZES, flat, on_host, probabilities, write
from tests.evaluation.tiny import CROP

WITHIN, MARGIN = 2, 3  # of the centre crop in an image


def measured(predict, images, **options):
    given = {**SIZES, "within": WITHIN} | options
    return aa_flax.evaluate(predict, images, ("images",), name="flat", **given)


def crop(image, down: int, right: int):
    return image[MARGIN + down :, MARGIN + right :][:CROP, :CROP]


def test_the_numbers_are_those_of_looking_at_each_crop_by_itself(tmp_path):
    pixels = write(tmp_path / "photos")
    axis = range(-WITHIN, WITHIN + 1)
    same, change = [], []
    for image in pixels:
        unshifted = probabilities(crop(image, 0, 0))
        own = unshifted.argmax()
        moved = [probabilities(crop(image, d, r)) for d in axis for r in axis if d or r]
        same.append([p.argmax() == own for p in moved])
        change.append([abs(p[own] - unshifted[own]) for p in moved])
    offsets = np.asarray(random_offsets(0, np.arange(len(pixels)), SIZES["passes"], 5))
    pairs = [
        [probabilities(image[y:, x:][:CROP, :CROP]).argmax() for y, x in offsets[i].reshape(-1, 2)]
        for i, image in enumerate(pixels)
    ]
    first, second = np.array(pairs)[:, ::2], np.array(pairs)[:, 1::2]
    found = measured(flat, tmp_path / "photos")["images"]
    assert found["num_images"] == len(pixels)
    assert found["same_class"] == pytest.approx(100 * np.mean(same))
    assert found["worst_case"] == pytest.approx(100 * np.all(same, 1).mean())
    assert found["probability_change"] == pytest.approx(100 * np.mean(change), rel=1e-4)
    assert found["probability_change_worst"] == pytest.approx(100 * np.max(change), rel=1e-4)
    assert found["consistency"] == pytest.approx(100 * (first == second).mean())


def test_a_function_on_the_host_and_pixels_in_memory_give_the_same(tmp_path):
    pixels = write(tmp_path / "photos")
    of_folder = measured(flat, str(tmp_path / "photos"))["images"]
    for predict, images in ((on_host, list(pixels)), (flat, pixels)):
        found = measured(predict, images)["images"]
        for key in ("consistency", "same_class", "worst_case", "num_images"):
            assert found[key] == of_folder[key]
    assert "folder" not in found
    assert found["digest"] != of_folder["digest"]


def test_other_pixels_under_the_same_names_are_other_images(tmp_path):
    write(tmp_path / "photos", count=2)
    shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    first, copied = (Pictures(tmp_path / name).described() for name in ("photos", "copy"))
    assert first["digest"] == copied["digest"]
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "photos" / "frame1.png")
    assert Pictures(tmp_path / "photos").described()["digest"] != first["digest"]
    (tmp_path / "copy" / "frame1.png").rename(tmp_path / "copy" / "frame2.png")
    assert Pictures(tmp_path / "copy").described()["digest"] != first["digest"]


def test_the_least_stable_images_are_named_and_drawn(tmp_path):
    pixels = write(tmp_path / "photos", count=5)
    steady = np.zeros_like(pixels[0])
    Image.fromarray(steady).save(tmp_path / "photos" / "frame5.png")
    output = tmp_path / "results.json"
    found = measured(flat, tmp_path / "photos", least_stable=5, output=output)["images"]
    names = [one["image"] for one in found["least_stable"]]
    assert str(tmp_path / "photos" / "frame5.png") not in names
    shares = [one["same_class"] for one in found["least_stable"]]
    assert shares == sorted(shares)
    first = found["least_stable"][0]
    image = pixels[int(first["image"][-5])]
    own = probabilities(crop(image, 0, 0)).argmax()
    there = probabilities(crop(image, *first["worst_shift"]))
    assert first["class"] == f"class {own}"
    assert first["worst_class"] == f"class {there.argmax()}"
    assert first["worst_probability"] == pytest.approx(100 * there[own], abs=1e-3)
    assert (tmp_path / found["figure"]).stat().st_size > 0
    assert json.loads(output.read_text())["num_images"] == 0  # of labelled ones
    again = json.loads(output.read_text())["images"]
    assert again["least_stable"][0] == first


def test_the_report_compares_two_models(tmp_path):
    write(tmp_path / "photos")
    for name, predict in (("plain", flat), ("steady", lambda x: x.mean((1, 2)))):
        aa_flax.evaluate(
            predict,
            tmp_path / "photos",
            ("images",),
            name=name,
            output=tmp_path / "runs" / f"{name}.json",
            **SIZES,
            within=1,
        )
    rows, left_out = gather([tmp_path / "runs"])
    assert left_out == []
    report = write_report(rows, tmp_path / "report").read_text()
    assert "own images: consistency" in report
    assert "## Own images" in report
    for suffix in (".png", ".pdf", ".svg"):
        assert (tmp_path / "report" / f"images{suffix}").stat().st_size > 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_names_of_classes_are_read_as_an_editor_writes_them(tmp_path, encoding):
    write(tmp_path / "photos")
    names = tmp_path / "names.txt"
    names.write_bytes("".join(f"{name}\r\n" for name in [*"äbcdef", ""]).encode(encoding))
    found = measured(flat, tmp_path / "photos", class_names=str(names))
    assert {image["class"] for image in found["images"]["least_stable"]} <= set("äbcdef")
    names.write_bytes("äbcdef".encode("latin-1"))
    with pytest.raises(InputError, match=r"names\.txt is not in UTF-8 .*; save it as UTF-8"):
        measured(flat, tmp_path / "photos", class_names=str(names))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"within": 3}, r"images of 16x16 pixels are too small .*they need 17"),
        ({"within": 0}, r"--within must be an integer of at least 1, got 0"),
        ({"image_size": 17}, r"frame0\.png has 16 x 16 pixels, but a square of 17 is cut from it"),
        ({"class_names": "names.txt"}, r"cannot read names\.txt: No such file"),
        ({"class_names": "imagenet"}, r"imagenet has 1000 names, but flat gives 6 logits"),
        ({"fps": 3.0}, r"--fps belongs to --clip"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    write(tmp_path / "photos")
    with pytest.raises(InputError, match=message):
        measured(flat, tmp_path / "photos", **options)


def test_what_is_no_folder_of_images_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*nowhere \(--images\)"):
        measured(flat, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty \(--images\) contains no files; images end in \.jpg"
    ):
        measured(flat, tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("none")
    with pytest.raises(InputError, match="contains 1 files, none of which is an image"):
        measured(flat, tmp_path / "empty")
    (tmp_path / "empty" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"cannot read image .*broken\.png: not an image"):
        measured(flat, tmp_path / "empty")
    with pytest.raises(InputError, match=r"one or several; got \[\]"):
        measured(flat, [])
    with pytest.raises(InputError, match=r"images are paths .* got int"):
        aa_flax.evaluate(flat, None, ("images",), images=3, **SIZES)
    with pytest.raises(InputError, match=r"images are paths .* got generator"):
        aa_flax.evaluate(flat, (path for path in [tmp_path]), ("images",), **SIZES)
    with pytest.raises(InputError, match="the measure accuracy needs labelled images"):
        aa_flax.evaluate(flat, tmp_path / "empty", **SIZES)


def test_orientation_tags_are_ignored_and_counted(tmp_path, capsys):
    upright = write(tmp_path / "photos", count=2)
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(upright[0]).save(tmp_path / "photos" / "frame0.png", exif=tag)
    found = measured(flat, tmp_path / "photos")["images"]
    assert found["lost"] == {"orientation tag ignored": 1}
    assert "of 2 images: orientation tag ignored (1)" in capsys.readouterr().out
    assert found["same_class"] == measured(flat, upright)["images"]["same_class"]


def test_a_function_that_answers_at_random_is_found_out():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 16, 16, 3), np.uint8)
    with pytest.raises(InputError, match=r"another class when it saw them again; is it in train"):
        measured(lambda x: rng.standard_normal((len(x), 6)), images, jit=False)


def test_images_that_cannot_be_read_are_skipped_and_named_on_request(tmp_path, capsys):
    write(tmp_path / "photos", count=3)
    expected = measured(flat, tmp_path / "photos")["images"]
    (tmp_path / "photos" / "x_empty.jpg").touch()
    (tmp_path / "photos" / "x_missing.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "photos" / "x_pipe.jpg")
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "photos" / "x_16.png")
    with pytest.raises(InputError, match=r'x_16\.png: its .*; replace it, or .* on_error="skip"$'):
        measured(flat, tmp_path / "photos")
    found = measured(flat, tmp_path / "photos", on_error="skip")["images"]
    names = [f"x_{name}" for name in ("16.png", "empty.jpg", "missing.jpg", "pipe.jpg")]
    assert found["skipped"] == [str(tmp_path / "photos" / name) for name in names]
    assert all(name in capsys.readouterr().out for name in names[:1])
    for key in ("num_images", "consistency", "same_class", "probability_change"):
        assert found[key] == expected[key]
