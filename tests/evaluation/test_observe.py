"""The evaluation loop: statistics of each image for any batches and devices."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from aa_flax import InputError
from aa_flax.evaluation import views
from aa_flax.evaluation.measures.accuracy import accuracy, accuracy_per_class, save_predictions
from aa_flax.evaluation.observe import observe
from aa_flax.runtime import data_mesh
from tests.evaluation.tiny import COUNT, CROP, SIZE, Flat, Noise, batches, look, slow_logits
from tests.sweeps import slow_but

CENTER = views.Center(CROP)
ALL_VIEWS = {
    "center": CENTER,
    "shift": views.ShiftedPairs(CROP, 5, passes=3),
    "circular": views.RolledPairs(CROP, 4, passes=2),
    "subpixel": views.SubpixelPairs(CROP, passes=2),
    "jitter": views.JitteredPairs(CROP, passes=2),
    "grid": views.grid(CROP, 5, 2),
    "diagonal": views.diagonal(CROP, SIZE),
}


def center_logits():
    edge = (SIZE - CROP) // 2
    return slow_logits(Noise().images[:, edge : edge + CROP, edge : edge + CROP])


def test_accuracy_equals_one_image_at_a_time():
    labels, logits = Noise().labels, center_logits()
    hits = np.argsort(-logits, axis=1) == labels[:, None]
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    found = accuracy(look(CENTER))
    assert found["num_images"] == COUNT
    assert found["top1"] == pytest.approx(100 * hits[:, 0].mean())
    assert found["top5"] == pytest.approx(100 * hits[:, :5].any(1).mean())
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_each_image_keeps_its_probabilities_and_classes():
    labels, logits = Noise().labels, center_logits()
    p = torch.softmax(torch.tensor(logits), 1).numpy()
    seen = look(CENTER)
    own = p[np.arange(COUNT), labels]
    np.testing.assert_allclose(seen.probability[:, 0], own, rtol=1e-4)
    p[np.arange(COUNT), labels] = 0
    np.testing.assert_allclose(np.exp(seen.log_other[:, 0]), p.max(1), rtol=1e-4)
    np.testing.assert_array_equal(seen.top[:, 0], np.argsort(-logits, axis=1)[:, :5])


@pytest.mark.parametrize("name", slow_but(("center", "shift", "subpixel", "grid"), ALL_VIEWS))
def test_batch_size_devices_and_order_change_nothing(name):
    chosen = ALL_VIEWS[name]
    expected = look(chosen, batch_size=22)
    shuffled = list(batches(4))[::-1]
    backwards = observe(Flat(), shuffled, {"all": chosen}, mesh=data_mesh())["all"]
    for found in (look(chosen, 4), look(chosen, 16, jax.devices()[:1]), backwards):
        for field in dataclasses.fields(found):
            a, b = getattr(expected, field.name), getattr(found, field.name)
            if np.issubdtype(a.dtype, np.integer):
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_several_sets_of_views_in_one_sweep_equal_one_after_the_other():
    together = observe(Flat(), batches(), ALL_VIEWS, mesh=data_mesh())
    for name, chosen in ALL_VIEWS.items():
        np.testing.assert_array_equal(together[name].top, look(chosen).top)


def test_a_tie_goes_to_the_first_class():
    model = Flat()
    nnx.update(model, jax.tree.map(np.zeros_like, nnx.state(model)))
    seen = look(CENTER, model=model)
    np.testing.assert_array_equal(seen.rank[:, 0], Noise().labels)
    np.testing.assert_array_equal(seen.predicted, 0)


def test_an_output_that_is_not_finite_is_never_right():
    model = Flat()
    nnx.update(model, jax.tree.map(lambda x: np.full_like(x, np.nan), nnx.state(model)))
    assert accuracy(look(CENTER, model=model))["top5"] == 0


def test_per_class_accuracy_adds_up_to_the_total():
    seen = look(CENTER)
    classes = accuracy_per_class(seen, Noise.class_names)
    assert sum(c["num_images"] for c in classes.values()) == COUNT
    mean = sum(c["num_images"] * c["top1"] for c in classes.values()) / COUNT
    assert mean == pytest.approx(accuracy(seen)["top1"])
    ours = Noise().labels == 2
    hits = center_logits().argmax(1) == Noise().labels
    assert classes["c"]["top1"] == pytest.approx(100 * hits[ours].mean())


def test_predictions_are_saved_with_the_names_of_the_images(tmp_path):
    save_predictions(tmp_path / "folder/p.npz", look(CENTER), Noise())
    saved = np.load(tmp_path / "folder/p.npz")
    np.testing.assert_array_equal(saved["index"], np.arange(COUNT))
    np.testing.assert_array_equal(saved["label"], Noise().labels)
    np.testing.assert_array_equal(saved["top5"][:, 0], center_logits().argmax(1))
    assert saved["probability"].shape == (COUNT,)
    assert saved["name"][3] == "noise 3"


def test_images_too_small_for_the_shifts_are_refused():
    with pytest.raises(InputError, match=r"14x14 pixels are too small.*they need 17"):
        look(views.ShiftedPairs(CROP, 8))
