"""The drift of embeddings under shifts, compared with single crops and pairs."""

from itertools import combinations

import numpy as np
import pytest

import aa_flax
from aa_flax import InputError
from aa_flax.evaluation.measures.drift import mean_distance
from aa_flax.models.classifier import Classifier
from aa_flax.report import gather, table
from tests.evaluation.random_images import KERNEL, SIZES, flat, on_host, write
from tests.evaluation.tiny import CROP, Noise, Small


class Pooled(Small):
    """A model with the default head: the mean over positions, and the last layer."""

    __call__ = Classifier.__call__


WITHIN, MARGIN = 2, 3  # of the centre crop in an image
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def measured(embed, images, **options):
    given = {**SIZES, "within": WITHIN} | options
    return aa_flax.evaluate(embed, images, "drift", name="flat", **given)["drift"]


def embedding(image, down=0, right=0):
    crop = image[MARGIN + down :, MARGIN + right :][:CROP, :CROP]
    return ((crop / 255 - MEAN) / STD).ravel() @ KERNEL.astype(np.float64)


def test_the_numbers_are_those_of_one_crop_and_one_pair_at_a_time(tmp_path):
    pixels = write(tmp_path / "photos")
    pairs = combinations(pixels, 2)
    scale = np.mean([np.linalg.norm(embedding(a) - embedding(b)) for a, b in pairs])
    axis = range(-WITHIN, WITHIN + 1)
    moved = {
        (d, r): [np.linalg.norm(embedding(x, d, r) - embedding(x)) / scale for x in pixels]
        for d in axis
        for r in axis
        if d or r
    }
    found = measured(flat, tmp_path / "photos")
    assert found["mean_distance"] == pytest.approx(scale, rel=1e-5)
    assert found["drift"] == pytest.approx(100 * np.mean([*moved.values()]), rel=1e-5)
    worst = np.max([*moved.values()], 0)
    assert found["drift_worst"] == pytest.approx(100 * worst.mean(), rel=1e-5)
    ring = [values for shift, values in moved.items() if max(map(abs, shift)) == 2]
    assert found["by_radius"]["2"] == pytest.approx(100 * np.mean(ring), rel=1e-5)
    assert found["by_radius"]["0"] == 0


def test_the_scale_of_the_embedding_the_batch_and_the_library_do_not_matter(tmp_path):
    pixels = write(tmp_path / "photos")
    expected = measured(flat, pixels)["drift"]
    for embed in (lambda x: 3 * flat(x), on_host):
        assert measured(embed, pixels, batch_size=2)["drift"] == pytest.approx(expected, rel=1e-4)


def test_an_embedding_that_ignores_where_things_are_does_not_drift():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 1, 3), np.uint8)
    found = measured(lambda x: x.mean((1, 2)), pixels.repeat(16, 1).repeat(16, 2))
    assert found["drift"] == found["drift_worst"] == 0


def test_many_images_have_the_mean_distance_of_all_pairs():
    vectors = np.random.default_rng(0).normal(1000, 1, (1500, 3))
    slow = [np.linalg.norm(vectors[i] - vectors[j]) for i, j in combinations(range(0, 1500, 15), 2)]
    assert mean_distance(vectors[::15]) == pytest.approx(np.mean(slow))
    total = sum(np.linalg.norm(vectors - v, axis=1).sum() for v in vectors)
    assert mean_distance(vectors) == pytest.approx(total / (1500 * 1499))


def test_the_embedding_of_a_model_is_what_its_last_layer_gets(tmp_path):
    pixels, model = write(tmp_path / "photos"), Pooled()
    expected = measured(lambda x: model.forward_features(x).mean((1, 2)), pixels)
    output = tmp_path / "r.json"
    found = measured(model, pixels, output=output)
    assert found["drift"] == pytest.approx(expected["drift"], rel=1e-5)
    with np.load(tmp_path / found["file"]) as arrays:
        assert arrays["drift"].tolist() == [*found["by_radius"].values()]
    rows, left_out = gather([output])
    assert left_out == []
    assert "| drift | worst drift |" in table(rows)


@pytest.mark.parametrize(
    ("embed", "options", "message"),
    [
        (flat, {"within": 0}, "--within must be an integer of at least 1, got 0"),
        (flat, {"within": 4}, "images of 16x16 pixels are too small for these crops and shifts"),
        (
            lambda x: x,
            {},
            r"an array of shape \(4, 10, 10, 3\) for 4 images; --drift takes vectors",
        ),
        (lambda x: flat(x) * np.nan, {}, "the output of <lambda> is not finite"),
        (lambda x: 0 * flat(x) + 0.1, {}, "all 6 images have the same embedding"),
    ],
)
def test_what_has_no_drift_is_refused(tmp_path, embed, options, message):
    with pytest.raises(InputError, match=message):
        measured(embed, write(tmp_path / "photos"), **options)


def test_one_image_and_labelled_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="compares different images and got one; give two or mo"):
        measured(flat, write(tmp_path / "photos", count=1))
    with pytest.raises(InputError, match="the measure drift needs its option: how far shifts move"):
        measured(flat, Noise())
