"""Metrics of shifted, rolled, sub-pixel and jittered pairs, compared with single crops."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

from aa_flax import InputError, create_model, load_torch_state_dict
from aa_flax.data.pixels import normalise
from aa_flax.evaluation import views
from aa_flax.evaluation.intervals import clustered_interval
from aa_flax.evaluation.measures.consistency import WorstCase, agreement, consistency
from aa_flax.evaluation.measures.diagonal import diagonal_arrays
from aa_flax.evaluation.observe import observe
from aa_flax.evaluation.shifts import random_offsets
from aa_flax.runtime import data_mesh
from benchmarks.reference import reference_model
from tests.evaluation.tiny import COUNT, CROP, SIZE, Flat, Noise, look, slow_logits

RANGE, PASSES = 5, 3
INDEX = jnp.arange(COUNT)


def crops_at(offsets):
    """Returns the crops of each image at its offsets `(n, ..., 2)`."""
    images = Noise().images
    crops = np.empty((*offsets.shape[:-1], CROP, CROP, 3), np.uint8)
    for place in np.ndindex(offsets.shape[:-1]):
        top, left = offsets[place]
        crops[place] = images[place[0], top : top + CROP, left : left + CROP]
    return crops


def center(images):
    edge = (SIZE - CROP) // 2
    return images[..., edge : edge + CROP, edge : edge + CROP, :]


def slow_figures(crops):
    """Returns the metrics by their definitions, for crops `(n, passes, 2, h, w, 3)`."""
    logits = slow_logits(crops)
    classes, labels = logits.argmax(-1), Noise().labels[:, None]
    p = torch.softmax(torch.tensor(logits), -1).numpy()
    own = np.stack([p[i, ..., label] for i, label in enumerate(labels[:, 0])])
    agreed = classes[..., 0] == classes[..., 1]
    per_image = agreed.mean(1)
    assert 0 < per_image.mean() < 1
    return {
        "num_images": COUNT,
        "consistency": 100 * agreed.mean(),
        "consistency_interval": clustered_interval(per_image, PASSES),
        "consistent_and_correct": 100 * (agreed & (classes[..., 0] == labels)).mean(),
        "probability_change": 100 * np.abs(own[..., 0] - own[..., 1]).mean(),
        "top1_shifted": 100 * (classes == labels[..., None]).mean(),
    }


def check(found, expected, rel):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=rel), key


def test_shifted_pairs_equal_one_crop_at_a_time():
    offsets = np.asarray(random_offsets(7, INDEX, PASSES, RANGE))
    found = consistency(look(views.ShiftedPairs(CROP, RANGE, PASSES, seed=7)))
    check(found, slow_figures(crops_at(offsets)), rel=1e-4)


def test_images_of_one_draw_share_their_offsets():
    offsets = np.asarray(random_offsets(7, INDEX // 8, PASSES, RANGE))
    assert (offsets[:8] == offsets[0]).all()
    assert (offsets[8] != offsets[0]).any()
    found = consistency(look(views.ShiftedPairs(CROP, RANGE, PASSES, seed=7, images_per_draw=8)))
    check(found, slow_figures(crops_at(offsets)), rel=1e-4)


def test_rolled_pairs_equal_numpys_roll():
    shifts = np.asarray(random_offsets(0, INDEX, PASSES, 8)) - 4
    assert shifts.min() == -4
    assert shifts.max() == 3
    images = center(Noise().images)
    crops = np.empty((*shifts.shape[:3], CROP, CROP, 3), np.uint8)
    for place in np.ndindex(shifts.shape[:3]):
        crops[place] = np.roll(images[place[0]], shifts[place], (0, 1))
    found = consistency(look(views.RolledPairs(CROP, 4, PASSES)))
    check(found, slow_figures(crops), rel=1e-4)


def test_subpixel_pairs_equal_numpys_fourier_transform():
    fractions = np.asarray(views.random_uniform(0, INDEX, (PASSES, 2, 2)))
    f = np.fft.fftfreq(SIZE)
    crops = np.empty((*fractions.shape[:3], CROP, CROP, 3), np.float32)
    for place in np.ndindex(fractions.shape[:3]):
        down, right = (np.exp(-2j * np.pi * f * d) for d in fractions[place])
        down[SIZE // 2], right[SIZE // 2] = (np.cos(np.pi * d) for d in fractions[place])
        spectrum = np.fft.fft2(Noise().images[place[0]], axes=(0, 1))
        spectrum *= down[:, None, None] * right[:, None]
        crops[place] = center(np.fft.ifft2(spectrum, axes=(0, 1)).real)
    found = consistency(look(views.SubpixelPairs(CROP, PASSES)))
    check(found, slow_figures(crops), rel=1e-3)


def test_jittered_pairs_equal_pils_resize():
    jitter = views.JitteredPairs(CROP, scale=0.3, passes=PASSES)
    squares = np.asarray(jitter.squares(INDEX, SIZE, SIZE))
    crops = np.empty((*squares.shape[:3], CROP, CROP, 3), np.float32)
    for place in np.ndindex(squares.shape[:3]):
        top, left, side = (float(x) for x in squares[place])
        box = (left, top, left + side, top + side)
        for channel in range(3):
            image = Image.fromarray(Noise().images[place[0], ..., channel].astype(np.float32))
            resized = image.resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
            crops[(*place, ..., channel)] = np.asarray(resized)
    found = consistency(look(jitter))
    check(found, slow_figures(crops), rel=1e-3)


def test_squares_stay_within_the_image_and_cover_their_range():
    jitter = views.JitteredPairs(100, scale=0.2, passes=50)
    top, left, side = np.moveaxis(np.asarray(jitter.squares(INDEX, 130, 120)), -1, 0)
    assert side.min() == pytest.approx(80, abs=0.5)
    assert side.max() == pytest.approx(120, abs=0.5)
    assert min(top.min(), left.min()) >= 0
    assert (top + side).max() <= 130
    assert (left + side).max() <= 120


def test_offsets_are_uniform_over_the_range():
    offsets = np.asarray(random_offsets(0, jnp.arange(500), 5, 4))
    counts = np.bincount(offsets.ravel(), minlength=5)
    assert counts[4] == 0
    np.testing.assert_allclose(counts[:4] / offsets.size, 0.25, atol=0.02)


def test_another_seed_draws_other_offsets():
    first = random_offsets(0, INDEX, 5, 32)
    assert (np.asarray(first) != np.asarray(random_offsets(1, INDEX, 5, 32))).any()


def test_the_worst_case_counts_an_image_only_if_it_is_right_at_every_offset():
    grid = views.grid(CROP, RANGE, 3)
    assert grid.offsets == tuple((i, j) for i in (0, 2, 4) for j in (0, 2, 4))
    offsets = np.broadcast_to(np.array(grid.offsets), (COUNT, 9, 2))
    hits = slow_logits(crops_at(offsets)).argmax(-1) == Noise().labels[:, None]
    seen = look(grid)
    np.testing.assert_array_equal(seen.correct, hits)
    found = WorstCase().result(seen, subject=None)  # pyright: ignore[reportArgumentType]
    assert found["top1_worst"] == pytest.approx(100 * hits.all(1).mean())
    assert found["top1_mean"] == pytest.approx(100 * hits.mean())


def test_a_grid_finer_than_the_range_has_each_offset_once():
    assert len(views.grid(CROP, 3, 5).offsets) == 9


def test_diagonal_arrays_equal_one_crop_at_a_time():
    steps = SIZE - CROP + 1
    offsets = np.broadcast_to(np.arange(steps)[:, None], (COUNT, steps, 2))
    logits, labels = slow_logits(crops_at(offsets)), Noise().labels
    p = torch.softmax(torch.tensor(logits), -1).numpy()
    arrays = diagonal_arrays(look(views.diagonal(CROP, SIZE)))
    own = np.stack([p[i, :, label] for i, label in enumerate(labels)])
    np.testing.assert_allclose(arrays["diag_probs"], own, rtol=1e-4)
    for i, label in enumerate(labels):
        p[i, :, label] = 0
    np.testing.assert_allclose(arrays["diag_probs2"], p.max(-1), rtol=1e-4)
    np.testing.assert_array_equal(arrays["diag_preds"], logits.argmax(-1))
    np.testing.assert_array_equal(arrays["diag_corrs"], logits.argmax(-1) == labels[:, None])


def to_torch(images):
    return torch.tensor(np.asarray(normalise(jnp.asarray(images))).transpose(0, 3, 1, 2).copy())


def test_agreement_equals_that_of_the_original_image_by_image():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 9, 9, 3), np.uint8)
    images = np.stack([np.asarray(Image.fromarray(x).resize((71, 71))) for x in small])
    batch = {
        "image": images,
        "label": np.zeros(6, np.int32),
        "index": np.arange(6),
        "mask": np.ones(6, bool),
    }
    reference = reference_model("resnet18_lpf4", num_classes=10)
    with torch.no_grad():  # so that a random model does not give all images one class
        reference.fc.bias -= reference(to_torch(images[:, :40, :40])).mean(0)
    model = load_torch_state_dict(
        create_model("resnet18_lpf4", num_classes=10), reference.state_dict()
    )
    pairs = views.ShiftedPairs(40, 32, passes=4)
    seen = observe(model, [batch], {"all": pairs}, mesh=data_mesh())["all"]

    offsets = np.asarray(random_offsets(0, jnp.arange(6), 4, 32))
    classes = np.empty(offsets.shape[:-1], int)
    for place in np.ndindex(classes.shape):
        top, left = offsets[place]
        crop = images[place[0], None, top : top + 40, left : left + 40]
        with torch.no_grad():
            classes[place] = reference(to_torch(crop)).argmax()
    np.testing.assert_array_equal(seen.predicted.reshape(classes.shape), classes)
    expected = (classes[..., 0] == classes[..., 1]).mean(1)
    np.testing.assert_array_equal(agreement(seen), expected)
    assert 0 < expected.mean() < 1


def test_a_model_without_finite_outputs_does_not_count_as_consistent():
    model = Flat()
    model.fc.bias[...] = jnp.full_like(model.fc.bias[...], jnp.nan)
    assert isinstance(model.fc, nnx.Linear)
    with pytest.raises(InputError, match="output is not finite"):
        consistency(look(views.ShiftedPairs(CROP, RANGE), model=model))
