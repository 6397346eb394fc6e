"""Measures of functions to maps, compared with theory or a slow NumPy computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax import InputError, evaluate
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.intervals import clustered_interval
from aa_flax.evaluation.measures.maps import mask_consistency, translation_psnr
from aa_flax.evaluation.shifts import lanczos_matrices, random_offsets
from tests.evaluation.tiny import CROP, SIZE, Noise

KERNEL = np.random.default_rng(0).normal(size=(5, 5, 3, 4)).astype(np.float32)
IMAGES = Noise().images
FLOAT32 = 144.49  # decibels of half a unit of the last place


def conv(x, stride=1, mode="wrap"):
    x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, KERNEL, (stride, stride), "VALID", dimension_numbers=dims
    )


def glued(x):
    """A function to a constant pattern, for any image."""
    pattern = np.random.default_rng(1).normal(size=(*x.shape[1:3], 4))
    return jnp.broadcast_to(jnp.asarray(pattern, jnp.float32), (len(x), *pattern.shape))


def masks(predict, **options):
    options = {"crop_size": CROP, "shift_range": 5, "passes": 3, "batch_size": 8} | options
    return mask_consistency(predict, IMAGES, **options)


def psnr(predict, **options):
    options = {"crop_size": CROP, "max_shift": 2, "passes": 3, "batch_size": 8} | options
    return translation_psnr(predict, IMAGES, **options)


def test_a_circular_convolution_is_equivariant_to_rolls():
    assert masks(conv, rolled=True)["consistency"] == 100
    assert psnr(conv, rolled=True)["psnr"] > 100


def test_a_pointwise_function_is_equivariant_where_both_crops_see():
    assert masks(lambda x: x**2)["consistency"] == 100
    assert psnr(lambda x: x**2)["psnr"] == pytest.approx(FLOAT32, abs=0.01)


def test_strides_lose_some_of_it_and_a_pattern_glued_to_the_pixels_nearly_all():
    functions = (conv, lambda x: conv(x, stride=2), glued)
    dense, strided, fixed = (masks(f, rolled=True) for f in functions)
    assert dense["agreement"] > strided["agreement"] + 20 > fixed["agreement"] + 30
    dense, strided, fixed = (psnr(f, rolled=True)["psnr"] for f in functions)
    assert dense > strided + 50
    assert strided > fixed + 1
    assert fixed < 20


def test_zero_padding_costs_consistency_between_crops():
    found = masks(lambda x: conv(x, mode="constant"))
    assert 60 < found["agreement"] < 99


def maps(predict, images):
    return np.asarray(predict(normalise(jnp.asarray(images))), np.float64)


def test_mask_consistency_equals_a_computation_pixel_by_pixel():
    def predict(x):
        return conv(x, stride=2, mode="constant")

    found = masks(predict)
    offsets = np.asarray(random_offsets(0, np.arange(len(IMAGES)), 3, 5))
    confusion, shares = np.zeros((4, 4)), []
    for image, pairs in zip(IMAGES, offsets, strict=True):
        for pair in pairs:
            labels = []  # -1 outside of the image
            for top, left in pair:
                crop = image[None, top : top + CROP, left : left + CROP]
                label = maps(predict, crop)[0].argmax(-1).repeat(2, 0).repeat(2, 1)
                labels.append(np.full((SIZE, SIZE), -1))
                labels[-1][top : top + CROP, left : left + CROP] = label
            both = (labels[0] >= 0) & (labels[1] >= 0)
            np.add.at(confusion, (labels[0][both], labels[1][both]), 1)
            shares.append((labels[0] == labels[1])[both].mean())
    per_class = 200 * np.diag(confusion) / (confusion.sum(0) + confusion.sum(1))
    np.testing.assert_allclose(found["per_class"], per_class)
    assert found["consistency"] == pytest.approx(per_class.mean())
    assert found["agreement"] == pytest.approx(100 * np.mean(shares), rel=1e-5)
    interval = clustered_interval(np.reshape(shares, (-1, 3)).mean(1), 3)
    assert found["agreement_interval"] == pytest.approx(interval, rel=1e-4)


def test_psnr_equals_a_computation_pixel_by_pixel():
    def predict(x):
        return conv(x, mode="constant")

    found = psnr(predict)
    shifts = np.asarray(random_offsets(0, np.arange(len(IMAGES)), 3, 5))[:, :, 0] - 2
    errors, values = [], []
    for image, moves in zip(IMAGES, shifts, strict=True):
        centre = maps(predict, image[None, 2:-2, 2:-2])[0]
        values.append(centre)
        for down, right in moves:
            crop = image[None, 2 - down : SIZE - 2 - down, 2 - right : SIZE - 2 - right]
            moved = maps(predict, crop)[0]
            for p, q in np.ndindex(CROP, CROP):
                if 0 <= p - down < CROP and 0 <= q - right < CROP:
                    errors.append((moved[p, q] - centre[p - down, q - right]) ** 2)
    assert found["mean_squared_error"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found["dynamic_range"] == pytest.approx(np.max(values) - np.min(values), rel=1e-5)
    expected = 10 * np.log10(found["dynamic_range"] ** 2 / np.mean(errors))
    assert found["psnr"] == pytest.approx(expected, abs=1e-3)


def test_a_range_that_is_given_replaces_the_one_found():
    found = psnr(conv)
    given = psnr(conv, dynamic_range=10 * found["dynamic_range"])
    assert given["psnr"] == pytest.approx(found["psnr"] + 20)


def waves(phase):
    place = 2 * np.pi * np.arange(32) / 32
    return 128 + 100 * np.sin(place[:, None] + 2 * place + phase)


@pytest.mark.parametrize("rolled", [True, False])
def test_fractional_shifts_of_smooth_images_are_exact_up_to_the_resampling(rolled):
    images = np.repeat(np.stack([waves(0), waves(1)])[..., None], 3, axis=-1)
    options = {"crop_size": 32 if rolled else 24, "fractional": True, "rolled": rolled}
    smooth = translation_psnr(lambda x: 2 * x, images, **options)["psnr"]
    assert 40 < smooth < 100  # the limit of Lanczos' filter: App. E.2 of the paper
    stepped = translation_psnr(lambda x: jnp.sign(x[:, ::2, ::2]), images, **options)["psnr"]
    assert stepped < smooth - 15


@pytest.mark.parametrize("periodic", [True, False])
def test_lanczos_filters_sum_to_one_and_integer_shifts_are_exact(periodic):
    whole, half = lanczos_matrices(16, jnp.array([3.0, 0.5]), periodic=periodic)
    np.testing.assert_allclose(whole, np.eye(16, k=-3) + periodic * np.eye(16, k=13), atol=1e-6)
    np.testing.assert_allclose(half.sum(-1)[3:-3], 1, atol=1e-6)
    taps = np.sinc(np.arange(-2.5, 3)) * np.sinc(np.arange(-2.5, 3) / 3)
    np.testing.assert_allclose(half[8, 5:11], taps / taps.sum(), atol=1e-6)


def test_a_function_on_the_host_and_any_batch_size_give_the_same():
    def on_host(x):
        return np.asarray(conv(x))

    for measure in (masks, psnr):
        expected = measure(conv)
        for found in (measure(on_host, jit=False), measure(conv, batch_size=5)):
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-4, err_msg=key)


def test_classes_that_no_mask_has_do_not_count():
    def predict(x):
        return jnp.concatenate([conv(x), jnp.full((*x.shape[:3], 1), -1e9)], -1)

    found, without = masks(predict), masks(conv)
    assert found["per_class"] == [*without["per_class"], None]
    assert found["consistency"] == pytest.approx(without["consistency"])


SETTINGS = {"crop_size": CROP, "image_size": SIZE, "resize_size": 0, "shift_range": 5, "passes": 3}


def test_they_are_measures_of_aa_flax_evaluate(tmp_path):
    names = ("mask_consistency", "translation_psnr")
    found = evaluate(
        conv, Noise(), names, batch_size=8, output=tmp_path / "r.json", dynamic_range=50, **SETTINGS
    )
    assert found["mask_consistency"].items() >= masks(conv).items()
    expected = psnr(conv, dynamic_range=50, max_shift=CROP // 8)
    assert found["translation_psnr"]["psnr"] == pytest.approx(expected["psnr"])
    assert (tmp_path / "r.json").is_file()


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: x.mean((1, 2)), r"returns an array of shape \(8, 3\).* has to return maps"),
        (lambda x: x[:, :7, :7], "or smaller by an integer factor"),
        (lambda x: x[..., :1], "one channel, and masks need logits of two or more classes"),
        (lambda x: jnp.log(-(x**2)), "are not finite"),
    ],
)
def test_what_is_no_mask_is_refused(predict, message):
    with pytest.raises(InputError, match=message):
        masks(predict)


def test_logits_of_a_class_are_refused_before_anything_is_measured():
    with pytest.raises(InputError, match="has to return maps"):
        evaluate(lambda x: x.mean((1, 2)), Noise(), "mask_consistency", batch_size=8, **SETTINGS)


def test_maps_are_no_logits():
    names = ("accuracy", "translation_psnr")
    with pytest.raises(InputError, match="has to return logits"):
        evaluate(conv, Noise(), names, batch_size=8, **SETTINGS)


def test_a_constant_map_needs_a_dynamic_range():
    with pytest.raises(InputError, match=r"give the range .* as dynamic_range"):
        psnr(jnp.zeros_like)
    assert psnr(jnp.zeros_like, dynamic_range=1)["psnr"] == pytest.approx(FLOAT32, abs=0.01)


def test_crops_that_may_have_nothing_in_common_are_refused():
    with pytest.raises(InputError, match="give shift_range of at most 10, or rolled=True"):
        masks(conv, shift_range=11)
    with pytest.raises(InputError, match="give max_shift of at most 4"):
        psnr(conv, max_shift=5, fractional=True)


def test_images_without_room_for_the_shifts_are_refused():
    with pytest.raises(InputError, match="images of 14x14 pixels are too small"):
        masks(conv, shift_range=8)
    with pytest.raises(InputError, match=r"an array \(N, H, W, 3\), got one of shape"):
        mask_consistency(conv, IMAGES[0], crop_size=CROP, shift_range=5)
