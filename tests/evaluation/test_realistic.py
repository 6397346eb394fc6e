"""Shifts before the resize, compared with single windows, cropped and resized by PIL."""

import numpy as np
import pytest
from PIL import Image

from aa_flax import InputError, evaluate
from aa_flax.data.pixels import ImageError
from aa_flax.evaluation.intervals import clustered_interval
from tests.evaluation.random_images import SMOOTH_SIDE, Smooth, flat, on_host, probabilities
from tests.evaluation.tiny import CROP

SIZE = (44, 36)  # width and height; a crop of 10 of 20 pixels is one of 18 of the original
SIZES = {"crop_size": CROP, "resize_size": 20, "batch_size": 8}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def measured(name, predict=flat, source=None, **options):
    source = source or Smooth(size=SIZE)
    return evaluate(predict, source, name, name="flat", **SIZES | options)[name]


def slow_class(image, side, down, right, interpolation="bilinear"):
    top, left = (SIZE[1] - side) // 2 + down, (SIZE[0] - side) // 2 + right
    window = Image.fromarray(image[top : top + side, left : left + side])
    resized = np.asarray(window.resize((CROP, CROP), FILTERS[interpolation]))
    return probabilities(resized).argmax()


@pytest.mark.parametrize("interpolation", FILTERS)
def test_every_shift_before_the_resize_equals_one_window_at_a_time(interpolation):
    reach, source = 3, Smooth(size=SIZE)
    axis = range(-reach, reach + 1)
    classes = {
        (down, right): np.array(
            [slow_class(image, 18, down, right, interpolation) for image in source.images]
        )
        for down in axis
        for right in axis
    }
    found = measured("worst_realistic", worst_realistic=reach, interpolation=interpolation)
    for r in range(reach + 1):
        near = [c for shift, c in classes.items() if max(map(abs, shift)) <= r]
        stable = np.all([c == classes[0, 0] for c in near], 0)
        right = np.all([c == source.labels for c in near], 0)
        assert found["stable"][str(r)] == pytest.approx(100 * stable.mean())
        assert found["top1_worst"][str(r)] == pytest.approx(100 * right.mean())
    assert 0 < found["stable"]["3"] < 100


@pytest.mark.parametrize(("reach", "side", "most"), [(0.125, 18, 2), (0.25, 18, 4), (0.25, 24, 6)])
def test_random_shifts_equal_one_window_at_a_time(reach, side, most):
    source, passes, seed = Smooth(size=SIZE), 3, 5
    agreed, right = [], []
    for i, (image, label) in enumerate(zip(source.images, source.labels, strict=True)):
        shifts = np.random.default_rng((seed, i)).integers(-most, most + 1, (passes, 2))
        own = slow_class(image, side, 0, 0)
        moved = np.array([slow_class(image, side, *shift) for shift in shifts])
        agreed.append((moved == own).mean())
        right.append(((moved == own) & (own == label)).mean())
    sizes = {"resize_size": 20} if side == 18 else {"resize_size": 12}  # as large as there is room
    found = measured("realistic", realistic=reach, passes=passes, seed=seed, **sizes)
    assert found["consistency"] == pytest.approx(100 * np.mean(agreed))
    assert found["consistent_and_correct"] == pytest.approx(100 * np.mean(right))
    assert found["consistency_interval"] == clustered_interval(np.array(agreed), passes)
    assert 0 < found["consistency"] < 100


def test_without_a_change_of_size_they_are_the_shifts_of_the_crop():
    source = Smooth()
    sizes = {"resize_size": SMOOTH_SIDE, "image_size": SMOOTH_SIDE}
    crops = measured("stability", source=source, stability=2, **sizes)
    windows = measured("worst_realistic", source=source, worst_realistic=2, **sizes)
    for key in ("stable", "accuracy_stable", "accuracy_unstable", "same_class", "interval"):
        assert windows[key] == crops[key]


def test_a_function_on_the_host_and_any_batch_size_give_the_same():
    for name, reach in (("realistic", 0.25), ("worst_realistic", 1)):
        expected = measured(name, **{name: reach})
        found = measured(name, predict=on_host, batch_size=14, **{name: reach})
        for result in (expected, found):  # which rounding changes
            result.pop("probability_change", None)
        assert found == expected


def test_images_that_cannot_be_read_are_left_out():
    class Broken(Smooth):
        def __getitem__(self, index):
            if index == 3:
                raise ImageError.of("smooth 3", "it is broken")
            return super().__getitem__(index)

    source = Broken(size=SIZE)
    found = measured("worst_realistic", source=source, worst_realistic=1, on_error="skip")
    assert found["num_images"] == len(source) - 1
    with pytest.raises(InputError, match="cannot read image smooth 3: it is broken"):
        measured("realistic", source=source, realistic=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"realistic": 0.3}, r"--realistic must be a number from 0 to 0\.25, got 0\.3"),
        ({"realistic": 0.0}, r"--realistic is more than 0, and at most 0\.25 of the side"),
        ({"realistic": 0.01}, r"smooth 0 has 44 x 36 pixels: 0\.01 of a window of 18 pixels is le"),
        ({"realistic": 0.1, "resize_size": 0}, "with resize_size 0 images are not; use --shift"),
        ({"worst_realistic": 0}, "--worst_realistic must be an integer of at least 1, got 0"),
        ({"worst_realistic": 5}, "a shift of 5 pixels is more than a quarter of the window, of 18"),
        ({"worst_realistic": 40}, "is more than a quarter of the window, of 0 pixels; give larger"),
        ({"worst_realistic": 1, "resize_size": 0}, "moves a window before the image is resized"),
    ],
)
def test_shifts_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        measured(next(iter(options)), **options)
