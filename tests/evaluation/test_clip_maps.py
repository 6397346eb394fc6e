"""Flicker of masks, maps and points, compared with their definitions written out."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aa_flax import InputError, evaluate
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.measures.clip_maps import map_flicker, mask_flicker, point_flicker

SIDE, FPS, MOTION = 16, 12.5, (2, -3)


@pytest.fixture
def frames(rng):
    return rng.integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)


def classes(images):
    return images @ jnp.asarray([[1.0, -1, 0], [0, 1, -1], [-1, 0, 1]])


def in_common(maps, motion):
    """Yields pairs of values of the same content, pixel by pixel."""
    down, right = motion
    for before, after in pairwise(maps):
        for i in range(SIDE):
            for j in range(SIDE):
                if 0 <= i + down < SIDE and 0 <= j + right < SIDE:
                    yield before[i, j], after[i + down, j + right]


@pytest.mark.parametrize("motion", [(0, 0), MOTION])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_masks_and_maps_by_their_definitions(frames, motion, batch_size):
    options = {"fps": FPS, "motion": motion, "batch_size": batch_size}
    maps = np.asarray(classes(normalise(jnp.asarray(frames))))
    pairs = [*in_common(maps, motion)]
    changed = np.mean([a.argmax() != b.argmax() for a, b in pairs])
    difference = np.mean([np.abs(a - b).mean() for a, b in pairs])
    masks, values = (
        mask_flicker(classes, frames, **options),
        map_flicker(classes, frames, **options),
    )
    assert masks["changed"] == pytest.approx(100 * changed)
    assert masks["changed_per_second"] == pytest.approx(FPS * changed)
    assert values["difference"] == pytest.approx(difference, rel=1e-5)
    assert values["difference_per_second"] == pytest.approx(FPS * difference, rel=1e-5)
    assert masks["num_frames"] == 5


def test_a_function_that_moves_with_the_content_does_not_flicker(frames):
    panned = np.stack([np.roll(frames[0], (2 * t, -3 * t), (0, 1)) for t in range(3)])
    moving = mask_flicker(classes, panned, fps=FPS, motion=MOTION)["changed"]
    assert moving == 0 < mask_flicker(classes, panned, fps=FPS)["changed"]
    assert map_flicker(classes, panned, fps=FPS, motion=MOTION)["difference"] == 0


def test_points_by_their_definition():
    frames = np.zeros((4, SIDE, SIDE, 3), np.uint8)
    found = np.array(
        [[[3.0, 4], [0, 0]], [[6, 8], [np.nan, 0]], [[6, 8], [1, 1]], [[3, 8], [1, 2]]]
    )

    def points(images):  # of all frames, whatever they show
        return found

    options = {"fps": FPS, "batch_size": len(frames), "jit": False}
    result = point_flicker(points, frames, **options)
    assert result["jitter"] == pytest.approx((5 + 0 + 3 + 1) / 4)
    assert result["jitter_per_second"] == pytest.approx(FPS * 9 / 4)
    assert result["missing"] == pytest.approx(100 * 2 / 6)
    moved = point_flicker(points, frames, motion=(4, 3), **options)
    assert moved["jitter"] == pytest.approx((0 + 5 + np.hypot(6, 4) + np.hypot(3, 3)) / 4)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 8, 8, 3), {}, r"two or more square frames, got one of shape \(1, 8, 8, 3\)"),
        ((3, 8, 9, 3), {}, "square"),
        ((3, 8, 8, 3), {"motion": (0, 8)}, r"less than the 8 pixels .* got \(0, 8\)"),
        ((3, 8, 8, 3), {"motion": (-8, 0)}, "at least -7, got -8"),
        ((3, 8, 8, 3), {"motion": 2}, "two numbers of pixels, down and right, got 2"),
        ((3, 8, 8, 3), {"motion": (1, 2, 3)}, r"down and right, got \(1, 2, 3\)"),
        ((3, 8, 8, 3), {"fps": -1}, "fps .* got -1"),
        ((3, 8, 8, 3), {"fps": 0}, "fps is the number of frames a second, more than 0; got 0"),
    ],
)
def test_clips_that_cannot_be_measured(shape, options, message):
    with pytest.raises(InputError, match=message):
        map_flicker(classes, np.zeros(shape, np.uint8), **{"fps": FPS, **options})


def test_outputs_that_cannot_be_measured():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match=r"one channel.*return 0 and x"):
        mask_flicker(lambda x: x[..., :1], frames, fps=FPS)
    with pytest.raises(InputError, match="no point in two successive frames"):
        point_flicker(lambda x: jnp.full((len(x), 1, 2), jnp.nan), frames, fps=FPS)
    counts = iter([1, 2, 3])
    with pytest.raises(InputError, match="different numbers of points"):
        point_flicker(
            lambda x: np.zeros((len(x), next(counts), 2)), frames, fps=FPS, batch_size=1, jit=False
        )


def brightest(images):
    place = images.sum(-1).reshape(len(images), -1).argmax(1)
    side = images.shape[1]
    return jnp.stack([place % side, place // side], -1)[:, None]


@pytest.mark.parametrize(
    ("function", "predict"),
    [(mask_flicker, classes), (map_flicker, classes), (point_flicker, brightest)],
)
def test_evaluate_measures_the_centre_crops_of_a_clip(frames, function, predict, tmp_path):
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    sizes = {"crop_size": 10, "resize_size": 0, "shift_range": 3}
    middle = frames[:, 3:13, 3:13]
    expected = function(predict, middle, fps=FPS)
    name = function.__name__
    for clip in (frames, tmp_path):
        found = evaluate(predict, clip, name, fps=FPS, **sizes)[name]
        assert {key: found[key] for key in expected} == pytest.approx(expected)
    with pytest.raises(InputError, match="but a square of 20 is cut"):
        evaluate(predict, frames, name, **{**sizes, "crop_size": 20})
