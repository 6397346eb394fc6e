"""With `canonical_crop`, the window follows the content within its certified radius."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

from aa_flax import InputError, canonical_crop
from aa_flax.transform import scores

RNG = np.random.default_rng(0)
SCENE, FRAME, SIDE = 44, 32, 16
MOVES = SCENE - FRAME + 1  # offsets of a frame in the scene, on each axis
crop = jax.jit(partial(canonical_crop, size=SIDE))

SCENES = {
    "noise": RNG.integers(0, 256, (SCENE, SCENE, 3), np.uint8),
    "floats": RNG.normal(size=(SCENE, SCENE, 3)).astype(np.float32),
    "photograph": data.astronaut()[90:178:2, 190:278:2],
    "two values": RNG.integers(0, 2, (SCENE, SCENE, 1), np.uint8),
    "constant": np.full((SCENE, SCENE, 3), 7, np.uint8),
}


def frames_of(scene):
    """Returns the frames at all offsets of the scene."""
    offsets = np.ndindex(MOVES, MOVES)
    return np.stack([scene[i : i + FRAME, j : j + FRAME] for i, j in offsets])


@pytest.fixture(scope="module", params=SCENES)
def of_all_frames(request):
    """Returns the windows of all frames of a scene: pixels, offsets in the scene, and radius."""
    found = crop(frames_of(SCENES[request.param]))
    pixels, offsets, radius = (np.asarray(x).reshape(MOVES, MOVES, *x.shape[1:]) for x in found)
    at = np.moveaxis(np.indices((MOVES, MOVES)), 0, -1)
    return request.param, pixels, offsets + at, radius


def around(i, j, radius):
    """Returns the frames that are moved by at most a number of pixels, of those in the scene."""
    return slice(max(i - radius, 0), i + radius + 1), slice(max(j - radius, 0), j + radius + 1)


def test_within_the_radius_every_frame_has_the_same_window(of_all_frames):
    name, pixels, offsets, radius = of_all_frames
    for i, j in np.ndindex(MOVES, MOVES):
        near = around(i, j, radius[i, j])
        assert (offsets[near] == offsets[i, j]).all()
        assert (pixels[near] == pixels[i, j]).all()
    assert (radius.max() > 1) == (name not in ("two values", "constant"))  # which tie


def test_beyond_the_radius_another_window_may_win(of_all_frames):
    """Except where the radius is the largest that a frame can certify, or windows tie."""
    name, _, offsets, radius = of_all_frames
    inner = [
        (i, j)
        for i, j in np.ndindex(MOVES, MOVES)
        if radius[i, j] < min(i, j, MOVES - 1 - i, MOVES - 1 - j, 5)
    ]
    if name in ("noise", "floats", "photograph"):
        assert len(inner) > 20
        for i, j in inner:
            assert (offsets[around(i, j, radius[i, j] + 1)] != offsets[i, j]).any()


def test_the_middle_of_the_window_has_most_contrast():
    """Compares with sums in NumPy, window by window."""
    frame = RNG.integers(0, 256, (24, 30, 3), np.uint8)
    (window,), (offset,), _ = canonical_crop(frame[None], (12, 16))
    grey = frame.astype(int).sum(-1) // 3
    down, right = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(grey, axis=1))
    best = {}
    for i, j in np.ndindex(24 - 12 + 1, 30 - 16 + 1):
        top, left = i + (12 - 3) // 2, j + (16 - 3) // 2  # the middle has 12 // 4 pixels
        steps = down[top - 1 : top + 2, left : left + 3], right[top : top + 3, left - 1 : left + 2]
        best[i, j] = sum(step.sum() for step in steps)
    i, j = max(best, key=lambda at: best[at])
    assert offset.tolist() == [i, j]
    np.testing.assert_array_equal(window, frame[i : i + 12, j : j + 16])


def test_a_tie_has_no_radius():
    frame = np.zeros((1, 40, 40, 1), np.float32)
    frame[0, 16:19, 12:15] = frame[0, 16:19, 24:27] = RNG.normal(size=(3, 3, 1))
    assert crop(frame).radius.tolist() == [0]
    frame[0, 17, 13] += 9
    assert crop(frame).radius[0] > 0


def test_a_window_of_the_size_of_the_frame_is_the_frame():
    frames = RNG.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    found = crop(frames)
    np.testing.assert_array_equal(found.images, frames)
    assert found.radius.tolist() == [0, 0]


def test_channels_first_and_gradients():
    frames = jnp.asarray(RNG.normal(size=(2, 24, 30, 3)), jnp.float32)
    expected = canonical_crop(frames, (12, 16))
    found = canonical_crop(jnp.moveaxis(frames, -1, 1), (12, 16), layout="NCHW")
    jax.tree.map(
        np.testing.assert_array_equal, found._replace(images=found.images.transpose(0, 2, 3, 1)),
        expected,
    )  # fmt: skip
    gradient = jax.jit(jax.grad(lambda x: canonical_crop(x, (12, 16)).images.sum()))(frames)
    assert gradient.sum((1, 2)).tolist() == [[192] * 3] * 2


def test_contrast_is_exact_beyond_the_range_of_its_partial_sums():
    x = jnp.asarray(RNG.choice([-256, 256], (1, 200, 200, 1)).astype(np.float32))
    exact = np.asarray(scores.levels(x), np.int64)[0, :, :, 0]
    steps = np.abs(np.diff(exact, axis=0))[:, 1:] + np.abs(np.diff(exact, axis=1))[1:]
    assert steps.sum() > 2**30
    assert scores.contrast(x, 3)[0, -1, -1] == steps[-3:, -3:].sum()


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((1, 32, 32, 3), 33, "windows of 33x33 pixels in frames of 32x32"),
        ((1, 32, 32, 3), (16, 4), "size of at least 8"),
        ((1, 32, 32, 3), 0, "size must be an integer of at least 1"),
        ((32, 32, 3), 16, r"of shape \(32, 32, 3\)"),
        ((1, 3, 32, 32), 16, "in frames of 3x32"),
    ],
)
def test_frames_and_sizes_that_do_not_fit_are_refused(shape, size, message):
    with pytest.raises(InputError, match=message):
        canonical_crop(np.zeros(shape, np.uint8), size)
