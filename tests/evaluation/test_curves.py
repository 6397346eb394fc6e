"""Curves over the largest shift, compared with single crops."""

import numpy as np
import pytest

from aa_flax import InputError, evaluate, report
from aa_flax.data.pixels import center_box
from aa_flax.evaluation.measures import MEASURES
from tests.evaluation.random_images import SMOOTH_SIDE, Smooth, flat, on_host, probabilities
from tests.evaluation.tiny import CROP

REACH = 3
SIZES = {"crop_size": CROP, "image_size": SMOOTH_SIDE, "resize_size": 0, "batch_size": 8}
LEFT = center_box(SMOOTH_SIDE, SMOOTH_SIDE, CROP)[0]


def measured(*names, predict=flat, **options):
    return evaluate(predict, Smooth(), names, name="flat", **SIZES | options)


def slow_classes(view, axis):
    """Returns the class of each image at each shift `(down, right)` of `view`."""
    shifts = [(down, right) for down in axis for right in axis]
    return {
        shift: np.array([probabilities(view(image, *shift)).argmax() for image in Smooth().images])
        for shift in shifts
    }


def cropped(image, down=0, right=0):
    return image[LEFT + down :, LEFT + right :][:CROP, :CROP]


def rolled(image, down, right):
    return np.roll(cropped(image), (down, right), (0, 1))


def moved(image, down, right):
    """Rolls an image by fractions of a pixel, with NumPy's Fourier transform."""
    spectrum = np.fft.fft2(image.astype(float), axes=(0, 1))
    for axis, shift in enumerate((down, right)):
        size = image.shape[axis]
        factors = np.exp(-2j * np.pi * np.fft.fftfreq(size) * shift)
        if size % 2 == 0:
            factors[size // 2] = np.cos(np.pi * shift)
        spectrum *= factors.reshape(-1, *[1] * (2 - axis))
    return np.fft.ifft2(spectrum, axes=(0, 1)).real


def slow_curve(classes, steps=1):
    """Returns the percentage of images that are correct at every shift, by radius."""
    radius = max(max(shift) for shift in classes)
    curve = {}
    for r in np.arange(0, radius + 1e-6, 1 / steps):
        right = [c == Smooth().labels for s, c in classes.items() if max(map(abs, s)) <= r + 1e-6]
        curve[f"{r:g}"] = 100 * np.all(right, 0).mean()
    return curve


INTEGERS, HALVES = range(-REACH, REACH + 1), np.arange(-1, 1.1, 0.5)


def test_the_curve_of_crops_equals_one_crop_at_a_time():
    classes = slow_classes(cropped, INTEGERS)
    found = measured("worst_within", worst_within=REACH)["worst_within"]
    expected = slow_curve(classes)
    assert found["top1_worst"] == pytest.approx(expected)
    assert 100 > expected["0"] > expected["1"] > expected["3"] > 0
    right = [c == Smooth().labels for c in classes.values()]
    assert found["top1_mean"] == pytest.approx(100 * np.mean(right))
    assert found["interval"][0] < expected["3"] < found["interval"][1]


def test_the_curve_of_rolls_equals_numpys_roll():
    found = measured("worst_circular", worst_circular=REACH)["worst_circular"]
    expected = slow_curve(slow_classes(rolled, INTEGERS))
    assert found["top1_worst"] == pytest.approx(expected)
    assert expected["0"] > expected["3"]


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("worst_within", lambda image, down, right: cropped(moved(image, -down, -right))),
        ("worst_circular", lambda image, down, right: moved(cropped(image), down, right)),
    ],
)
def test_shifts_by_half_pixels_equal_numpys_fourier_transform(name, view):
    found = measured(name, worst_steps=2, **{name: 1})[name]
    expected = slow_curve(slow_classes(view, HALVES), steps=2)
    assert found["top1_worst"] == pytest.approx(expected)
    assert list(expected) == ["0", "0.5", "1"]
    assert expected["0"] > expected["1"]


def test_the_curve_starts_at_the_accuracy_of_the_centre_crop():
    found = measured("accuracy", "worst_within", "worst_circular", worst_within=1, worst_circular=1)
    assert found["worst_within"]["top1_worst"]["0"] == found["top1"]
    assert found["worst_circular"]["top1_worst"]["0"] == found["top1"]


def test_stable_images_are_those_with_one_class_at_every_shift():
    classes = slow_classes(cropped, INTEGERS)
    found = measured("stability", stability=REACH)["stability"]
    centre, right = classes[0, 0], classes[0, 0] == Smooth().labels
    for r in range(REACH + 1):
        near = [c == centre for shift, c in classes.items() if max(map(abs, shift)) <= r]
        stable = np.all(near, 0)
        assert found["stable"][str(r)] == pytest.approx(100 * stable.mean())
        assert found["accuracy_stable"][str(r)] == pytest.approx(100 * right[stable].mean())
        if r == 0:
            assert found["accuracy_unstable"]["0"] is None  # no image is unstable
        else:
            assert found["accuracy_unstable"][str(r)] == pytest.approx(100 * right[~stable].mean())
    others = [c == centre for shift, c in classes.items() if any(shift)]
    assert found["same_class"] == pytest.approx(100 * np.mean(others))
    assert 0 < found["stable"]["3"] < found["stable"]["1"] < 100


def test_a_function_on_the_host_gives_the_same_curves():
    names = ("worst_within", "worst_circular", "stability")
    options = dict.fromkeys(names, 1)
    expected, found = (measured(*names, predict=f, **options) for f in (flat, on_host))
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


@pytest.fixture
def rows(tmp_path):
    for name, predict in (("plain", flat), ("steady", lambda x: flat(0 * x + 1))):
        names, options = ("worst_within", "stability"), {"worst_within": 2, "stability": 1}
        options["output"] = tmp_path / f"{name}.json"
        evaluate(predict, Smooth(), names, name=name, **SIZES | options)
    rows, left_out = report.gather([tmp_path])
    assert left_out == []
    return rows


def test_the_report_has_a_table_of_the_curves(rows):
    text = MEASURES["worst_within"].section(rows)
    assert text.startswith("## Images that are right at every shift within m pixels\n\n")
    assert "| model | % of images, by the largest shift in pixels | 0 | 1 | 2 |" in text
    text = MEASURES["stability"].section(rows)
    assert "| steady | same class at every shift | 100.00 | 100.00 |" in text
    assert "| plain | of the others, right at the centre |  | " in text
    assert "| steady | of the others, right at the centre |" not in text  # there are no such images
    assert MEASURES["worst_circular"].section(rows) == ""


def test_the_report_has_a_figure_of_the_curves(rows, tmp_path):
    pytest.importorskip("matplotlib")
    (path,) = MEASURES["stability"].figures(tmp_path, rows)
    assert path.stat().st_size > 0
    assert MEASURES["worst_circular"].figures(tmp_path, rows) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worst_within": 0}, "--worst_within must be an integer of at least 1, got 0"),
        ({"worst_within": 5}, "by at most 4 in the central 19; give at most 4, or an image_size o"),
        ({"stability": 2, "image_size": 11}, "move by at most 0 in the central 11; give an image_"),
        (
            {"stability": 2, "resize_size": 18},
            "image_size 19 exceeds resize_size 18, so that crops",
        ),
        ({"worst_circular": 6}, "more than half of the crop's 10 pixels repeat others; give at mo"),
        ({"worst_circular": 1, "worst_steps": 0}, "--worst_steps must be an integer of at least 1"),
    ],
)
def test_shifts_without_room_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        measured(next(iter(options)), **options)


def test_outputs_that_are_not_finite_are_refused():
    for name in ("worst_within", "stability"):
        with pytest.raises(InputError, match="output is not finite"):
            measured(name, predict=lambda x: flat(x) / 0 * 0, **{name: 1})
