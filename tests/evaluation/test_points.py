"""Jitter of points and boxes under shifts, compared with single crops."""

import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax import InputError, evaluate
from aa_flax.evaluation.measures.points import point_jitter
from aa_flax.evaluation.shifts import random_offsets
from tests.evaluation.tiny import CROP, SIZE, Noise

IMAGES, REACH, PASSES = Noise().images, 2, 3
EDGE = (SIZE - CROP) // 2


def jitter(predict, images=IMAGES, **options):
    options = {"crop_size": CROP, "max_shift": REACH, "passes": PASSES, "batch_size": 8} | options
    return point_jitter(predict, images, **options)


def centroids(x):
    """Returns two points (x, y): centroids of two powers of the brightness, by NumPy or JAX."""
    weight = (x[..., :1] + 3) ** np.array([1.0, 3.0])
    place = np.arange(CROP)
    right = (weight.sum(1) * place[:, None]).sum(1)
    down = (weight.sum(2) * place[:, None]).sum(1)
    points = [right / weight.sum((1, 2)), down / weight.sum((1, 2))]
    return (jnp if isinstance(x, jnp.ndarray) else np).stack(points, -1)


def shifts():
    """Returns the shifts (down, right) of each image and pass."""
    drawn = random_offsets(0, jnp.arange(len(IMAGES)), PASSES, 2 * REACH + 1)
    return np.asarray(drawn)[:, :, 0] - REACH


def test_it_is_the_mean_distance_from_the_moved_points():
    def at(image, down=0, right=0):
        crop = image[EDGE - down :, EDGE - right :][:CROP, :CROP]
        return centroids((crop[None, ..., :1] / 255 - 0.485) / 0.229)[0]

    distances = [
        np.hypot(*(after - before - (right, down)))
        for image, of_image in zip(IMAGES, shifts(), strict=True)
        for down, right in of_image
        for before, after in zip(at(image), at(image, down, right), strict=True)
    ]
    found = jitter(centroids)
    assert found["jitter"] == pytest.approx(np.mean(distances), rel=1e-4)
    assert found["jitter_worst"] == pytest.approx(np.max(distances), rel=1e-4)
    assert found["missing"] == 0
    assert found["num_images"] == len(IMAGES)


def spots(count=6):
    """Black images with one bright pixel, which every crop contains."""
    images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    for i, image in enumerate(images):
        image[6 + i % 3, 5 + i // 3] = 255
    return images


def brightest(x):
    place = x.sum(-1).reshape(len(x), -1).argmax(1)
    return jnp.stack([place % CROP, place // CROP], -1)[:, None]


def test_points_that_move_with_the_content_do_not_jitter_and_fixed_ones_do():
    assert jitter(brightest, spots())["jitter"] == 0
    fixed = jitter(lambda x: jnp.zeros((len(x), 1, 2)))
    lengths = np.hypot(*np.moveaxis(shifts(), -1, 0))
    assert fixed["jitter"] == pytest.approx(lengths.mean())
    assert fixed["jitter_worst"] == pytest.approx(lengths.max())


def test_boxes_are_their_corners():
    def boxes(x):
        return jnp.concatenate([brightest(x), 0 * brightest(x) + 5], -1)

    found = jitter(boxes, spots())
    corner = jitter(lambda x: 0 * brightest(x) + 5, spots())
    assert found["jitter"] == pytest.approx(corner["jitter"] / 2)
    assert found["jitter_worst"] == corner["jitter_worst"]


def test_fractions_of_a_pixel_move_points_by_fractions():
    place = np.arange(24)
    blob = np.exp(-((place - 11.0) ** 2) / 8)
    image = (255 * blob[:, None] * blob)[None, ..., None].repeat(3, -1)

    def centre(x):
        weight = x[..., 0] - x[..., 0].min()
        x, y = (weight.sum(axis) @ jnp.arange(20.0) for axis in (1, 2))
        return (jnp.stack([x, y], -1) / weight.sum((1, 2))[:, None])[:, None]

    options = {"crop_size": 20, "max_shift": 2, "fractional": True, "passes": 8}
    assert jitter(centre, image, **options)["jitter"] < 0.05
    assert jitter(lambda x: jnp.round(centre(x)), image, **options)["jitter"] > 0.1


def test_points_that_are_not_found_do_not_count():
    def half(x):
        return jnp.concatenate([brightest(x), jnp.full((len(x), 1, 2), jnp.nan)], 1)

    found = jitter(half, spots())
    assert (found["jitter"], found["missing"]) == (0, 50)


def test_it_is_a_measure_of_aa_flax_evaluate():
    sizes = {"crop_size": CROP, "image_size": SIZE, "resize_size": 0, "batch_size": 8}
    found = evaluate(brightest, Noise(), "point_jitter", passes=PASSES, **sizes)["point_jitter"]
    expected = jitter(brightest, max_shift=CROP // 8)
    assert found.items() >= expected.items()
    on_host = jitter(lambda x: np.asarray(brightest(x)), max_shift=CROP // 8, jit=False)
    assert on_host == expected
    with pytest.raises(InputError, match="it has to return points"):
        evaluate(lambda x: x, Noise(), "point_jitter", **sizes)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (
            lambda x: x.mean((1, 2)),
            r"an array of shape \(8, 3\) for 8 images; it has to return poi",
        ),
        (lambda x: x[:, :, 0], r"shape \(8, 10, 3\) .* points \(8, K, 2\) or boxes \(8, K, 4\)"),
        (lambda x: x[:, :0, 0, :2], "returns no points; give K of at least 1"),
        (lambda x: x[:, :2, 0, :2] * jnp.nan, "finds no point in both views of any image"),
        (lambda x: x[:, :2, 0, :2] * jnp.inf, "are not finite; give NaN for a point that is not"),
    ],
)
def test_what_is_no_point_is_refused(predict, message):
    with pytest.raises(InputError, match=message):
        jitter(predict)


def test_a_changing_number_of_points_is_refused():
    counts = iter(range(1, 9))
    with pytest.raises(InputError, match="different numbers of points for different images"):
        jitter(lambda x: np.zeros((len(x), next(counts), 2)), jit=False)


def test_images_without_room_are_refused():
    with pytest.raises(InputError, match="images of 14x14 pixels are too small"):
        jitter(brightest, max_shift=3)
