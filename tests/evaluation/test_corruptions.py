"""Small ImageNet-C and ImageNet-P trees: metrics compared with their definitions."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aa_flax import InputError
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.evaluate import evaluate
from aa_flax.evaluation.measures.corruptions import (
    ALEXNET_ERRORS,
    SEVERITIES,
    Corruptions,
    corruption_folders,
    corruption_summary,
)
from aa_flax.evaluation.measures.perturbations import (
    _natural_order,
    flip_rate,
    perturbation_folders,
    perturbation_summary,
    read_flip_rates,
)
from tests.evaluation.tiny import CLASSES, CROP, Flat, Noise


class Data(Noise):
    """The model's data set, with the classes of the trees below."""

    class_names = tuple(f"class{i}" for i in range(CLASSES))


def measured(name, root, *, source=None, **options):
    settings = {"crop_size": CROP, "image_size": CROP, "resize_size": 64, "batch_size": 4}
    options |= {"shift_range": 5, name: root}
    return evaluate(Flat(), source or Data(), (), **settings, **options)[name]


def write(path, rng, size=CROP):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def classes_of(pixels):
    return np.asarray(Flat()(normalise(np.stack(pixels)))).argmax(1)


@pytest.mark.parametrize("size", [CROP, CROP + 4])
def test_corruptions_are_measured_on_images_as_they_are(tmp_path, rng, size):
    images, labels = {}, np.repeat(np.arange(CLASSES), 2)
    for folder in ("noise/gaussian_noise/1", "noise/gaussian_noise/3", "weather/fog/5"):
        images[folder] = [
            write(tmp_path / folder / f"class{label}" / f"{i}.png", rng, size)
            for i, label in enumerate(labels)
        ]
    found = measured("corruptions", tmp_path)
    edge, by_corruption = (size - CROP) // 2, found["by_corruption"]
    assert set(by_corruption) == {"gaussian_noise", "fog"}
    for folder, pixels in images.items():
        crops = [p[edge : edge + CROP, edge : edge + CROP] for p in pixels]
        _, name, severity = folder.split("/")
        ours = by_corruption[name]["severities"][severity]
        assert ours["top1"] == pytest.approx(100 * (classes_of(crops) == labels).mean())
        assert ("consistency" in ours) == (size > CROP)
    fog = by_corruption["fog"]
    assert fog["error"] == pytest.approx(100 - fog["severities"]["5"]["top1"])
    assert found["mce"] is None


def test_the_mce_is_the_mean_error_relative_to_alexnets():
    alexnet = {
        name: {s: {"top1": 100 - error} for s in SEVERITIES}
        for name, error in ALEXNET_ERRORS.items()
    }
    assert corruption_summary(alexnet)["mce"] == pytest.approx(100)
    alexnet["fog"] = {s: {"top1": 100 - int(s)} for s in SEVERITIES}
    found = corruption_summary(alexnet)
    assert found["by_corruption"]["fog"]["ce"] == pytest.approx(100 * 3 / ALEXNET_ERRORS["fog"])
    assert found["mce"] == pytest.approx((1400 + 300 / ALEXNET_ERRORS["fog"]) / 15)
    del alexnet["fog"]["5"]
    assert corruption_summary(alexnet)["mce"] is None


def test_the_mean_is_over_the_fifteen_and_others_are_kept_apart():
    found = {name: {s: {"top1": 50.0} for s in SEVERITIES} for name in ALEXNET_ERRORS}
    found |= {name: {"1": {"top1": 90.0}} for name in ("saturate", "spatter")}
    summary = corruption_summary(found)
    assert (summary["mean_top1"], summary["mean_top1_extra"]) == (50, 90)
    mce = 5000 * np.mean([1 / error for error in ALEXNET_ERRORS.values()])
    line = f"top-1  50.00 % on average of 15 (90.00 % of 2 others), mCE {mce:.2f} %"
    assert Corruptions().line(summary).endswith(line)
    del found["fog"]
    summary = corruption_summary(found)
    assert summary["mean_top1"] == pytest.approx((14 * 50 + 2 * 90) / 16)
    assert Corruptions().line(summary).endswith("% on average of 16")


@pytest.mark.parametrize("name", ["corruptions", "perturbations"])
def test_a_tree_is_known_by_its_images_wherever_it_is(tmp_path, rng, name):
    first, second = tmp_path / "first", tmp_path / "second"
    folders = {"corruptions": ("snow/1", "fog/2"), "perturbations": ("tilt/class0", "tilt/class1")}
    names = {"corruptions": Data.class_names, "perturbations": ("a", "b")}[name]
    for folder in folders[name]:
        write_classes(first, rng, folder=folder, names=names, images=2)
    calls, output = [], tmp_path / "results.json"

    def measure(root):
        found = measured(name, root, output=output, weights={"sha256": "1"})
        calls.append(found["digest"])
        return len(list(tmp_path.glob("results*.json")))

    assert measure(first) == 1
    shutil.copytree(first, second)
    assert measure(second) == 1  # it has moved
    write(next(first.rglob("1.png")), rng)
    assert measure(first) == 2  # another image of the same name
    next(second.rglob("1.png")).rename(next(second.rglob("1.png")).with_name("2.png"))
    assert measure(second) == 3
    assert len(set(calls)) == 3


def test_alexnets_errors_are_the_published_means():
    assert len(ALEXNET_ERRORS) == 15
    # The five severities, which are published separately.
    assert ALEXNET_ERRORS["fog"] == pytest.approx(
        np.mean([67.474, 76.05, 84.378, 87.26, 94.5]), abs=1e-4
    )


def test_the_model_must_have_the_classes_of_the_tree(tmp_path, rng):
    write(tmp_path / "fog/1/class0/a.png", rng)
    with pytest.raises(InputError, match="has 1 classes, the model 6"):
        measured("corruptions", tmp_path)


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_that_is_no_tree_of_corruptions_is_named(tmp_path, make):
    if make:
        (tmp_path / "c/fog").mkdir(parents=True)
    with pytest.raises(InputError, match="<corruption>/<severity>/<class>"):
        corruption_folders(tmp_path / "c")


def test_flips_are_counted_from_frame_to_frame_or_from_the_first():
    predicted, clips = np.array([1, 2, 2, 1, 5, 5]), ["b", "b", "b", "b", "a", "a"]
    assert flip_rate(predicted, clips, noise=False) == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert flip_rate(predicted, clips, noise=True) == pytest.approx(100 * (2 / 3 + 0) / 2)
    predicted[3] = 2
    assert flip_rate(predicted, clips, noise=False) == pytest.approx(100 * (1 / 3) / 2)
    assert flip_rate(predicted, clips, noise=True) == pytest.approx(100 * (3 / 3) / 2)


def test_a_clip_of_one_frame_is_refused():
    with pytest.raises(InputError, match="clip a has one frame"):
        flip_rate(np.array([1]), ["a"], noise=False)


def test_perturbed_clips_are_read_frame_by_frame(tmp_path, rng):
    clips = {}
    for folder in ("tilt/c1/x", "tilt/c1/y", "tilt/c0/z", "shot_noise/c0/x"):
        frames = [write(tmp_path / folder / f"{i:02}.png", rng) for i in range(4)]
        clips[folder] = classes_of(frames)
    table = tmp_path / "rates.tsv"
    table.write_text("tilt\t50\nshot_noise\t25\n")
    found = measured("perturbations", tmp_path, flip_rates=table)
    flips = [
        np.mean(clips[f"tilt/{c}"][1:] != clips[f"tilt/{c}"][:-1]) for c in ("c1/x", "c1/y", "c0/z")
    ]
    noise = clips["shot_noise/c0/x"]
    expected = {"tilt": 100 * np.mean(flips), "shot_noise": 100 * np.mean(noise[1:] != noise[0])}
    assert found["flip_rates"] == pytest.approx(expected)
    assert found["mfr"] == pytest.approx((2 * expected["tilt"] + 4 * expected["shot_noise"]) / 2)


def test_a_table_must_list_every_perturbation(tmp_path):
    with pytest.raises(InputError, match="lacks tilt"):
        perturbation_summary({"tilt": 1.0}, {"shear": 2.0})
    assert "mfr" not in perturbation_summary({"tilt": 1.0}, None)


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_flip_rates(tmp_path / "none.tsv")
    for line in ("tilt five", "tilt\t0", "tilt\tnan", "tilt\t-1", "tilt\t5\ntilt\t6"):
        (tmp_path / "rates.tsv").write_text(f"{line}\n")
        with pytest.raises(
            InputError, match=r"rates\.tsv: 'tilt.* is not perturbation<tab>percent"
        ):
            read_flip_rates(tmp_path / "rates.tsv")


def test_videos_and_missing_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        perturbation_folders(tmp_path / "none")
    with pytest.raises(InputError, match="contains no <perturbation>"):
        perturbation_folders(tmp_path)
    film = tmp_path / "tilt/c0/a.mp4"
    film.parent.mkdir(parents=True)
    film.touch()
    with pytest.raises(InputError, match=r"a\.mp4 is a video; write its frames"):
        perturbation_folders(tmp_path)


def write_classes(root, rng, *, folder, names, images=1):
    for name in names:
        for i in range(images):
            write(root / folder / name / f"{i}.png", rng)


def test_class_folders_named_by_numbers_are_classes(tmp_path, rng):
    names = [str(i) for i in range(CLASSES)]
    for folder in ("fog/1", "noise/gaussian_noise/1", "noise/gaussian_noise/5"):
        write_classes(tmp_path, rng, folder=folder, names=names)
    assert corruption_folders(tmp_path) == {
        "fog": {"1": tmp_path / "fog/1"},
        "gaussian_noise": {
            severity: tmp_path / "noise/gaussian_noise" / severity for severity in ("1", "5")
        },
    }
    source = Data()
    source.class_names = tuple(names)
    found = measured("corruptions", tmp_path, source=source)
    assert found["by_corruption"]["fog"]["severities"]["1"]["num_images"] == CLASSES


def test_a_class_that_the_data_lacks_is_named(tmp_path, rng):
    names = [*Data.class_names[:-1], "klass"]
    write_classes(tmp_path, rng, folder="fog/1", names=names)
    with pytest.raises(InputError, match=r"fog/1 has classes that the data does not have: klass"):
        measured("corruptions", tmp_path)


def test_classes_of_the_tree_in_another_order_than_the_datas_are_refused(tmp_path, rng):
    write_classes(tmp_path, rng, folder="fog/1", names=Data.class_names)
    source = Data()
    source.class_names = Data.class_names[::-1]
    with pytest.raises(
        InputError, match="classes differently: 0 is class0 in one and class5 in the"
    ):
        measured("corruptions", tmp_path, source=source)
    source.class_names = tuple("abcdef")
    with pytest.raises(InputError, match="has classes that the data does not have: class0, class1"):
        measured("corruptions", tmp_path, source=source)


@pytest.mark.parametrize("digits", ["{}", "{:02}"])
def test_frames_are_in_their_natural_order(tmp_path, rng, digits):
    images = [write(tmp_path / "one.png", rng) for _ in range(12)]
    classes = classes_of(images)
    first, last = (
        images[0],
        next(x for x, c in zip(images, classes, strict=True) if c != classes[0]),
    )
    for i in range(1, 13):  # in the order of text 10, 11 and 12 come before 2
        path = tmp_path / "p/tilt/class0/c" / f"{digits.format(i)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(first if i < 10 else last).save(path)
    found = measured("perturbations", tmp_path / "p")
    assert found["flip_rates"] == pytest.approx({"tilt": 100 / 11})


def test_clips_whose_numbers_are_written_in_two_ways_are_two_clips():
    paths = [Path(f"c{clip}/{i}.png") for i in range(3) for clip in ("1", "01")]
    clips = [str(path.parent) for path in sorted(paths, key=_natural_order)]
    assert clips == ["c01"] * 3 + ["c1"] * 3


def test_trees_of_the_other_kind_are_refused(tmp_path, rng):
    write_classes(tmp_path / "c", rng, folder="fog/1", names=Data.class_names)
    write_classes(tmp_path / "deep", rng, folder="noise/shot_noise/2", names=Data.class_names)
    for root in ("c", "deep"):
        with pytest.raises(InputError, match=r"looks like ImageNet-C .* give it as --corruptions"):
            measured("perturbations", tmp_path / root)
    write_classes(tmp_path / "p", rng, folder="tilt/class0", names=["clip1", "clip2"], images=2)
    with pytest.raises(InputError, match=r"looks like ImageNet-P .* give it as --perturbations"):
        measured("corruptions", tmp_path / "p")


def test_a_clip_or_a_class_may_be_called_1(tmp_path, rng):
    source = Data()
    source.class_names = ("1", "2", *"abcd")
    write_classes(tmp_path, rng, folder="tilt/1", names=["x"], images=2)
    write_classes(tmp_path, rng, folder="tilt/2", names=["1"], images=2)
    assert set(measured("perturbations", tmp_path, source=source)["flip_rates"]) == {"tilt"}


def test_outputs_that_are_not_finite_are_an_error_on_trees_too(tmp_path, rng):
    write_classes(tmp_path / "c", rng, folder="fog/1", names=Data.class_names)
    write_classes(tmp_path / "p", rng, folder="tilt/class0", names=["clip"], images=2)

    def broken(images):
        return jnp.full((len(images), CLASSES), jnp.nan)

    settings = {"crop_size": CROP, "resize_size": 0, "batch_size": 4, "shift_range": 1}
    for options in ({"corruptions": tmp_path / "c"}, {"perturbations": tmp_path / "p"}):
        with pytest.raises(InputError, match="output is not finite"):
            evaluate(broken, Data(), (), **settings, **options)
