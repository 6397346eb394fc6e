"""ImageNet-C and ImageNet-P trees, small: figures against their definitions."""

import numpy as np
import pytest
from PIL import Image

from aa_flax import InputError
from aa_flax.data.transforms import normalise
from aa_flax.evaluation.corruptions import (
    ALEXNET_ERRORS,
    SEVERITIES,
    corruption_folders,
    corruption_summary,
    flip_rate,
    perturbation_folders,
    perturbation_summary,
    read_flip_rates,
)
from aa_flax.evaluation.robustness import measure_corruptions, measure_perturbations
from aa_flax.sharding import data_mesh
from configs import digits_resnet18
from tests.evaluation.tiny import CLASSES, CROP, Flat


@pytest.fixture
def config():
    config = digits_resnet18.get_config()
    config.data.crop_size = config.data.image_size = CROP
    config.data.resize_size = 64  # of the clean images: these are used as they are
    config.eval.batch_size = 4
    config.eval.shift_range = 5
    return config


def write(path, rng, size=CROP):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def classes_of(pixels):
    return np.asarray(Flat()(normalise(np.stack(pixels)))).argmax(1)


@pytest.mark.parametrize("size", [CROP, CROP + 4])
def test_corruptions_are_measured_on_images_as_they_are(tmp_path, rng, config, size):
    images, labels = {}, np.repeat(np.arange(CLASSES), 2)
    for folder in ("noise/gaussian_noise/1", "noise/gaussian_noise/3", "weather/fog/5"):
        images[folder] = [
            write(tmp_path / folder / f"class{label}" / f"{i}.png", rng, size)
            for i, label in enumerate(labels)
        ]
    found = measure_corruptions(Flat(), tmp_path, CLASSES, config, data_mesh())
    edge, by_corruption = (size - CROP) // 2, found["by_corruption"]
    assert set(by_corruption) == {"gaussian_noise", "fog"}
    for folder, pixels in images.items():
        crops = [p[edge : edge + CROP, edge : edge + CROP] for p in pixels]
        _, name, severity = folder.split("/")
        measured = by_corruption[name]["severities"][severity]
        assert measured["top1"] == pytest.approx(100 * (classes_of(crops) == labels).mean())
        assert ("consistency" in measured) == (size > CROP)
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


def test_alexnets_errors_are_the_published_means():
    assert len(ALEXNET_ERRORS) == 15
    # Of the five severities, as published apart.
    assert ALEXNET_ERRORS["fog"] == pytest.approx(
        np.mean([67.474, 76.05, 84.378, 87.26, 94.5]), abs=1e-4
    )


def test_the_net_must_have_the_classes_of_the_tree(tmp_path, rng, config):
    write(tmp_path / "fog/1/class0/a.png", rng)
    with pytest.raises(InputError, match="has 1 classes, the net 6"):
        measure_corruptions(Flat(), tmp_path, CLASSES, config, data_mesh())


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


def test_perturbed_clips_are_read_frame_by_frame(tmp_path, rng, config):
    clips = {}
    for folder in ("tilt/c1/x", "tilt/c1/y", "tilt/c0/z", "shot_noise/c0/x"):
        frames = [write(tmp_path / folder / f"{i:02}.png", rng) for i in range(4)]
        clips[folder] = classes_of(frames)
    table = tmp_path / "rates.tsv"
    table.write_text("tilt\t50\nshot_noise\t25\n")
    found = measure_perturbations(Flat(), tmp_path, table, config, data_mesh())
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
    (tmp_path / "rates.tsv").write_text("tilt five\n")
    with pytest.raises(InputError, match="'tilt five'"):
        read_flip_rates(tmp_path / "rates.tsv")


def test_films_and_missing_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        perturbation_folders(tmp_path / "none")
    with pytest.raises(InputError, match="holds no <perturbation>"):
        perturbation_folders(tmp_path)
    film = tmp_path / "tilt/c0/a.mp4"
    film.parent.mkdir(parents=True)
    film.touch()
    with pytest.raises(InputError, match=r"a\.mp4 is a film; write its frames"):
        perturbation_folders(tmp_path)
