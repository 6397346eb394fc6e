import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from aa_flax import InputError
from aa_flax.data.loader import evaluation_batches
from aa_flax.data.transforms import normalise
from aa_flax.evaluation.accuracy import evaluate_accuracy
from aa_flax.evaluation.consistency import evaluate_consistency, random_offsets
from aa_flax.models.classifier import Classifier
from aa_flax.sharding import data_mesh
from configs import digits_resnet18

COUNT, SIZE, CROP, RANGE, CLASSES = 22, 14, 10, 5, 6
DATA = digits_resnet18.get_config().data  # images as they are


class Noise:
    """Random images with random labels."""

    num_classes = CLASSES

    def __init__(self):
        rng = np.random.default_rng(1)
        self.images = rng.integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
        self.labels = rng.integers(0, CLASSES, COUNT)

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return {"image": self.images[index], "label": int(self.labels[index])}


class Flat(Classifier):
    """A linear classifier of pixels: as sensitive to shifts as can be."""

    def __init__(self):
        self.fc = nnx.Linear(CROP * CROP * 3, CLASSES, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.fc(x.reshape(len(x), -1))


def slow_logits(crop: np.ndarray) -> np.ndarray:
    return np.asarray(Flat()(normalise(jnp.asarray(crop)[None])))[0]


def consistency(batch_size=8, devices=None, **options):
    return evaluate_consistency(
        Flat(),
        evaluation_batches(Noise(), batch_size, DATA, crop=SIZE),
        crop_size=CROP,
        shift_range=RANGE,
        mesh=data_mesh(devices),
        **options,
    )


def test_accuracy_equals_one_image_at_a_time():
    source, edge = Noise(), (SIZE - CROP) // 2
    crops = source.images[:, edge : edge + CROP, edge : edge + CROP]
    logits = np.stack([slow_logits(crop) for crop in crops])
    ranks = np.argsort(-logits, axis=1)
    hits = ranks == source.labels[:, None]
    found = evaluate_accuracy(
        Flat(), evaluation_batches(source, 8, DATA, crop=CROP), crop_size=CROP, mesh=data_mesh()
    )
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(source.labels))
    assert found["num_images"] == COUNT
    assert found["top1"] == pytest.approx(100 * hits[:, 0].mean())
    assert found["top5"] == pytest.approx(100 * hits[:, :5].any(1).mean())
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_consistency_equals_one_crop_at_a_time():
    source, passes = Noise(), 3
    offsets = np.asarray(random_offsets(7, jnp.arange(COUNT), passes, RANGE))
    classes = np.empty((COUNT, passes, 2), int)
    for image, one_pass, crop in np.ndindex(classes.shape):
        top, left = offsets[image, one_pass, crop]
        pixels = source.images[image, top : top + CROP, left : left + CROP]
        classes[image, one_pass, crop] = slow_logits(pixels).argmax()
    agreement = (classes[..., 0] == classes[..., 1]).mean(1)
    found = consistency(passes=passes, seed=7)
    assert found["consistency"] == pytest.approx(100 * agreement.mean())
    assert 0 < agreement.mean() < 1
    interval = 196 * agreement.std() / np.sqrt(COUNT)
    assert found["consistency_ci95"] == pytest.approx(interval)
    hits = classes == source.labels[:, None, None]
    assert found["top1_shifted"] == pytest.approx(100 * hits.mean())


def test_consistency_depends_neither_on_batch_size_nor_on_devices():
    expected = consistency(batch_size=22)
    assert consistency(batch_size=4) == expected
    assert consistency(batch_size=16, devices=jax.devices()[:1]) == expected
    assert consistency(seed=1) != expected


def test_offsets_are_uniform_over_the_range():
    offsets = np.asarray(random_offsets(0, jnp.arange(500), 5, 4))
    counts = np.bincount(offsets.ravel(), minlength=5)
    assert counts[4] == 0
    np.testing.assert_allclose(counts[:4] / offsets.size, 0.25, atol=0.02)


def test_images_too_small_for_the_shifts_are_refused():
    with pytest.raises(InputError, match=r"14x14 pixels are too small.*they need 17"):
        evaluate_consistency(
            Flat(),
            evaluation_batches(Noise(), 8, DATA, crop=SIZE),
            crop_size=CROP,
            shift_range=8,
            mesh=data_mesh(),
        )
