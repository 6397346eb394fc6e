"""With `canonical`, any function gets the same pixels for every roll of an image."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aa_flax import InputError, antialias, canonical, evaluate
from aa_flax.transform import scores
from tests.evaluation.tiny import CROP, SIZE, Noise

H, W = 8, 6
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(H * W * 3, 5)).astype(np.float32)
KERNEL = jnp.asarray(RNG.normal(size=(3, 3, 3, 4)), jnp.float32)
BITS = RNG.integers(0, 2, (H, W, 3), np.uint8)


# Images for the functions.
seen = jax.jit(canonical(lambda x: x, maps=False))


def dense(images):
    """A function without any equivariance."""
    return images.astype(jnp.float32).reshape(len(images), -1) @ WEIGHTS


def strided(images):
    """A function that is equivariant only to cyclic shifts by multiples of 4."""
    padded = jnp.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="wrap")
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(padded, KERNEL, (4, 4), "VALID", dimension_numbers=numbers)
    return {"map": jax.nn.relu(y), "logits": jax.nn.relu(y).mean((1, 2)), "images": 2 * images}


def hashes(image):
    """Returns both hashes of the image as seen from each position."""
    return np.asarray(_hashes(image[None])).reshape(2, -1).T


_hashes = jax.jit(scores.hashes)


def rolls(image):
    h, w = image.shape[:2]
    return np.stack([np.roll(image, (i, j), (0, 1)) for i in range(h) for j in range(w)])


IMAGES = {
    "uint8": RNG.integers(0, 256, (H, W, 3), np.uint8),
    "uint16": RNG.integers(0, 2**16, (H, W, 3), np.uint16),
    "float32": RNG.normal(size=(H, W, 3)).astype(np.float32),
    "float16": RNG.normal(size=(H, W, 3)).astype(np.float16),
    "tiny": (1e-9 * RNG.normal(size=(H, W, 3))).astype(np.float32),
    "two values": BITS,
    "constant": np.zeros((H, W, 3), np.float32),
    "periodic": np.tile(BITS[:4, :3], (2, 2, 1)),
    "one pixel": np.eye(1, H * W * 3).reshape(H, W, 3),
    "diagonal": np.eye(H, W)[..., None].repeat(3, 2),
    "rows that tie": np.roll(np.eye(H, W), 3, 1)[::-1, :, None].repeat(3, 2),
    "infinite": np.where(BITS, np.inf, 1).astype(np.float32),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_a_function_gets_the_same_bits_for_every_roll(image):
    found = seen(rolls(image))
    assert found.dtype == image.dtype or image.dtype == np.float64
    np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))
    assert any((found[0] == roll).all() for roll in rolls(image).astype(found.dtype))


def test_logits_of_any_function_are_invariant_to_the_bit():
    one_by_one = jax.jit(lambda x: lax.map(canonical(dense), x[:, None])[:, 0])
    images = rolls(IMAGES["float32"])
    found = one_by_one(images)
    np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))
    assert np.ptp(dense(images), axis=0).min() > 1


def test_ties_are_broken_by_the_whole_image():
    """Two equal objects have the same rows and columns, but at different distances."""
    image = np.zeros((H, W, 3), np.uint8)
    image[0, 0] = image[4, 2] = 9
    assert scores.seams(jnp.asarray(image[None])).sum() == 8
    assert len(np.unique(hashes(image), axis=0)) == H * W
    test_a_function_gets_the_same_bits_for_every_roll(image)


def test_hashes_agree_where_the_same_image_is_seen_and_nowhere_else():
    image = IMAGES["periodic"]
    assert len({roll.tobytes() for roll in rolls(image)}) == 12
    found = hashes(image).reshape(H, W, 2)
    assert len(np.unique(found.reshape(-1, 2), axis=0)) == 12
    np.testing.assert_array_equal(found, np.tile(found[:4, :3], (2, 2, 1)))


def test_a_rolled_photograph_is_rolled_back():
    """A smooth image has no seam but its border."""
    image = np.add.outer(np.arange(H), 2 * np.arange(W))[..., None].repeat(3, 2).astype(np.uint8)
    assert (seen(rolls(image)) == image).all()


def test_maps_of_any_function_move_by_the_shift_over_their_stride():
    images = RNG.normal(size=(2, 8, 6, 3)).astype(np.float32)

    def f(x):  # a map of stride (4, 3), which is not equivariant to any shift
        x = x.cumsum(1)
        return {"map": x.reshape(2, 2, 4, 2, 3, 3).sum((2, 4)), "images": x}

    f = jax.jit(canonical(f))
    for d in ((4, 3), (0, 3), (4, 0), (3, 5)):
        still, moved = f(images), f(np.roll(images, d, (1, 2)))
        np.testing.assert_array_equal(moved["images"], np.roll(still["images"], d, (1, 2)))
        if d != (3, 5):
            expected = np.roll(still["map"], (d[0] // 4, d[1] // 3), (1, 2))
            np.testing.assert_array_equal(moved["map"], expected)


@pytest.mark.parametrize("stride", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_every_roll_moves_maps_of_a_strided_network_by_the_nearest_below_or_above(stride):
    image = RNG.normal(size=(H, 8, 3)).astype(np.float32)
    steady = canonical(strided, stride, phase_only=stride is not None)
    found = jax.jit(steady)(rolls(image))
    np.testing.assert_allclose(found["logits"], found["logits"][:1].repeat(H * 8, 0), 1e-5)
    plain = jax.jit(strided)(rolls(image))["logits"]
    assert np.ptp(plain, axis=0).min() > 0.01
    still = jax.tree.map(lambda x: x[0], found)
    for n, d in enumerate(np.ndindex(H, 8)):
        np.testing.assert_array_equal(found["images"][n], np.roll(still["images"], d, (0, 1)))
        near = [np.roll(still["map"], (a, b), (0, 1)) for a in _near(d[0]) for b in _near(d[1])]
        assert min(np.abs(found["map"][n] - map).max() for map in near) < 1e-5


def _near(d):
    return {d // 4, -(-d // 4)}


def test_a_stride_does_not_weaken_the_guarantee():
    images = RNG.normal(size=(1, H, 8, 3)).astype(np.float32)
    weights = RNG.normal(size=(H * 8 * 3, 4)).astype(np.float32)
    f = jax.jit(canonical(lambda x: x.reshape(len(x), -1) @ weights, 4))
    np.testing.assert_array_equal(f(images), f(np.roll(images, (3, 5), (1, 2))))


def test_a_phase_rolls_by_less_than_the_stride():
    images = rolls(IMAGES["uint8"])
    found = jax.jit(canonical(lambda x: x, (4, 3), phase_only=True, maps=False))(images)
    allowed = [[np.roll(x, (-i, -j), (0, 1)) for i in range(4) for j in range(3)] for x in images]
    assert all(
        (y == np.stack(ways)).all((1, 2, 3)).any() for y, ways in zip(found, allowed, strict=True)
    )


def test_each_image_of_a_batch_is_rolled_by_its_own_position():
    images = RNG.normal(size=(2, H, W, 3)).astype(np.float32)
    shifts = [(7, 3), (4, 5)]
    moved = np.stack([np.roll(x, d, (0, 1)) for x, d in zip(images, shifts, strict=True)])
    f = jax.jit(canonical(lambda x: x - x.mean(0), maps=False))  # mixes images
    np.testing.assert_array_equal(f(images), f(moved))


def test_channels_first_and_images_among_other_arguments():
    images = RNG.normal(size=(2, H, W, 3)).astype(np.float32)

    def f(params, x, *, scale):
        return {"logits": scale * dense(x) @ params, "map": x * params[0, 0]}

    def first(params, x, *, scale):
        out = f(params, jnp.moveaxis(x, 1, -1), scale=scale)
        return out | {"map": jnp.moveaxis(out["map"], -1, 1)}

    params = jnp.eye(5)
    expected = jax.jit(canonical(f))(params, images, scale=2)
    given = np.moveaxis(images, -1, 1)
    found = jax.jit(canonical(first, layout="NCHW"))(params, given, scale=2)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5),
        found,
        expected | {"map": jnp.moveaxis(expected["map"], -1, 1)},
    )
    swapped = canonical(lambda x, params, scale: f(params, x, scale=scale), argnum=0)
    found = jax.jit(swapped)(images, params, 2)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)


def test_gradients_are_those_at_the_position():
    images = rolls(IMAGES["float32"])
    weight = jnp.arange(H * W * 3.0).reshape(H, W, 3)

    @jax.jit
    @jax.grad
    def gradients(x):
        return (weight * canonical(jnp.sin, maps=False)(x)).sum()

    shift = next(
        d for d, x in zip(np.ndindex(H, W), images, strict=True) if (x == seen(images)[0]).all()
    )
    expected = np.roll(weight, [-n for n in shift], (0, 1)) * np.cos(images[0])
    np.testing.assert_allclose(gradients(images)[0], expected, rtol=1e-5)


def test_it_is_vectorised_and_antialiased():
    images = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)

    def f(x):
        return jnp.tanh(x)[:, ::2, ::2].reshape(len(x), -1)

    found = jax.jit(antialias(canonical(f)))
    np.testing.assert_array_equal(found(images), found(np.roll(images, (3, 5), (1, 2))))
    each = jax.jit(jax.vmap(canonical(f)))(images[:, None])[:, 0]
    np.testing.assert_array_equal(each, jax.jit(canonical(f))(images))


def test_an_evaluation_of_rolled_images_finds_no_change():
    weights = RNG.normal(size=(CROP * CROP * 3, Noise.num_classes)).astype(np.float32)
    sizes = {"crop_size": CROP, "image_size": SIZE, "resize_size": 0, "shift_range": 5, "passes": 2}
    f = canonical(lambda x: x.reshape(len(x), -1) @ weights)
    found = evaluate(f, Noise(), "circular", **sizes)["circular"]
    assert (found["consistency"], found["probability_change"]) == (100, 0)


def test_options_that_are_invalid_are_refused():
    for call, message in [
        (lambda: canonical(3), "takes a function of images, got a int"),  # pyright: ignore
        (lambda: canonical(dense, 0), "stride must be an integer of at least 1"),
        (
            lambda: canonical(dense, phase_only=True),
            "phase_only=True chooses a phase of the stride",
        ),
        (lambda: canonical(dense, (2, 2, 2)), "3 entries for 2 spatial axes"),
        (lambda: canonical(dense, layout="HWC"), "layout must be one of NHWC, NCHW"),  # pyright: ignore
        (lambda: canonical(dense, maps=1), "maps must be True or False"),  # pyright: ignore
    ]:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    ("f", "arguments", "message"),
    [
        (canonical(dense), (), "positional argument -1, got 0"),
        (canonical(dense, argnum=1), (BITS[None],), "positional argument 1, got 1"),
        (canonical(dense), (BITS,), r"got ndarray of shape \(8, 6, 3\)"),
        (canonical(dense), (None,), "got NoneType of shape"),
        (canonical(dense), (BITS[:0][None],), r"shape \(1, 0, 6, 3\)"),
        (canonical(dense), (BITS[None] * 1j,), "must be a real array"),
        (canonical(dense, 4), (BITS[None],), "8x6 pixels, which a stride of 4x4 does not divide"),
        (canonical(lambda x: x[:, 1:]), (BITS[None],), r"shape \(1, 7, 6, 3\)"),
        (canonical(lambda x: x[..., 0]), (BITS[None],), "maps=False"),
        (canonical(lambda x: x[:1]), (np.stack([BITS, BITS]),), "for 2 images"),
        (canonical(lambda x: x[:, ::4, ::2], (2, 2)), (BITS[None],), "map of stride 4x2"),
    ],
)
def test_images_and_outputs_that_do_not_fit_are_refused(f, arguments, message):
    with pytest.raises(InputError, match=message):
        f(*arguments)


def test_maps_of_one_pixel_are_logits():
    images = RNG.normal(size=(2, H, W, 3)).astype(np.float32)
    f = canonical(lambda x: x.mean((1, 2), keepdims=True), (2, 3))
    assert f(images).shape == (2, 1, 1, 3)
