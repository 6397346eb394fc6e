"""Runs that are trained on a teacher's outputs."""

import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from aa_flax import InputError, create_model, to_torch_state_dict
from aa_flax.config import check_config
from aa_flax.data.pixels import normalise
from aa_flax.runtime import data_mesh, put_batch
from aa_flax.training import loop, train
from aa_flax.training.distill import load_teacher, shifted, taught
from aa_flax.training.log import read_json_lines
from aa_flax.training.start import model_from_workdir
from aa_flax.training.step import distillation_loss, init_state, make_train_step
from aa_flax.training.stopping import Stopped
from aa_flax.weights.locate import locate
from aa_flax.weights.save_load import save_weights, write_torch_file
from tests.training.tiny import tiny_config

quick = pytest.mark.usefixtures("no_final_evaluation")


@pytest.fixture
def teacher(tmp_path):
    """Writes a file of a model with confident predictions."""
    return saved_teacher(tmp_path / "teacher.safetensors")


def saved_teacher(path, seed=2, num_classes=10):
    model = create_model("tiny", num_classes=num_classes, rngs=nnx.Rngs(seed))
    model.fc.kernel.set_value(5 * model.fc.kernel[...])
    save_weights(model, path)
    return str(path)


def divergence(logits, target, temperature):
    """Returns the loss by its definition, image by image."""
    losses = []
    for row, wanted in zip(logits.tolist(), target.tolist(), strict=True):
        total = sum(math.exp(x / temperature) for x in row)
        given = [math.exp(x / temperature) / total for x in row]
        terms = [p * math.log(p / q) for p, q in zip(wanted, given, strict=True) if p]
        losses.append(temperature**2 * sum(terms))
    return losses


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_divergence_from_the_teacher(rng, temperature):
    logits, teachers = 3 * rng.standard_normal((2, 6, 10), np.float32)
    target = np.array(jax.nn.softmax(teachers / temperature))
    target[0] = np.eye(10)[3]  # a probability of zero adds nothing
    found = distillation_loss(jnp.array(logits), jnp.array(target), temperature)
    np.testing.assert_allclose(found, divergence(logits, target, temperature), rtol=1e-4)


def test_the_gradient_is_zero_where_the_student_equals_the_teacher(rng):
    logits = jnp.array(3 * rng.standard_normal((6, 10), np.float32))

    def gradient(of):
        target = jax.nn.softmax(of / 2)
        return jax.grad(lambda x: distillation_loss(x, target, 2.0).sum())(logits)

    np.testing.assert_allclose(gradient(logits), 0, atol=1e-6)
    assert float(jnp.abs(gradient(-logits)).max()) > 0.1


def batch_of(rng, config, size=8):
    side, room = config.data.image_size, config.data.image_size - config.data.crop_size + 1
    return {
        "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "offset": rng.integers(0, room, (size, 2), np.int32),
    }


def loaded(config):
    return load_teacher(locate(config.distill.teacher, model=config.model), config, 10)


def distilling(teacher, **changes):
    changes = {f"distill.{name}": value for name, value in changes.items()}
    return check_config(tiny_config(**{"distill.teacher": teacher, **changes}), training=True)


def test_the_answer_is_the_mean_over_shifted_crops_of_which_one_is_the_students(rng, teacher):
    config = distilling(teacher, shifts=3, temperature=2)
    model, batch = loaded(config), batch_of(rng, config)
    size, room, answers = config.data.crop_size, 9, []
    for i in range(3):
        offsets = np.asarray(shifted(jnp.array(batch["offset"]), i, room))
        assert ((offsets >= 0) & (offsets < room)).all()
        assert (offsets == batch["offset"]).all() == (i == 0)
        crops = [
            image[y : y + size, x : x + size]
            for image, (y, x) in zip(batch["image"], offsets, strict=True)
        ]
        answers.append(jax.nn.softmax(model(normalise(np.stack(crops))) / 2))
    mesh = data_mesh()
    given = taught(lambda _, batch: batch["target"], model, config, mesh)
    found = given(None, put_batch(batch, mesh))
    np.testing.assert_allclose(found, np.mean(answers, 0), rtol=1e-5)
    assert np.abs(found - answers[0]).max() > 1e-3


def test_labels_do_not_matter(rng, teacher):
    config, mesh = distilling(teacher), data_mesh()
    optimizer, student = optax.sgd(0.1), create_model("tiny", num_classes=10)
    step = make_train_step(
        student,
        optimizer,
        lambda batch: normalise(batch["image"]),
        schedule=optax.constant_schedule(0.1),
        mesh=mesh,
    )
    step = taught(step, loaded(config), config, mesh)
    batch = batch_of(rng, config)
    ends = [
        step(init_state(student, optimizer, mesh), put_batch({**batch, "label": labels}, mesh))
        for labels in (batch["label"], 9 - batch["label"])
    ]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


@quick
def test_a_run_approaches_its_teacher_and_resumes_bit_for_bit(teacher, tmp_path, monkeypatch):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("evaluation went on")

    config = distilling(teacher, shifts=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "accuracy_on", stop)
        with pytest.raises(Stopped):
            train.train(config, tmp_path / "cut")
    train.train(config, tmp_path / "cut")
    train.train(config, tmp_path / "whole")
    ends = [model_from_workdir(tmp_path / run, step=18)[0] for run in ("cut", "whole")]
    for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in ends), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [row["train_loss"] for row in read_json_lines(tmp_path / "whole" / "metrics.jsonl")]
    assert losses[-1] < 0.7 * losses[0]


@quick
def test_a_run_does_not_resume_with_another_teacher(teacher, tmp_path):
    config = tiny_config(num_epochs=1, max_steps_per_epoch=1, **{"distill.teacher": teacher})
    train.train(config, tmp_path / "run")
    other = saved_teacher(tmp_path / "other.safetensors", seed=3)
    config.distill.teacher = other
    with pytest.raises(InputError, match=r"config\.distill\.teacher: .*teacher.* there, .*other"):
        train.train(config, tmp_path / "run")
    config.distill.teacher = saved_teacher(teacher, seed=3)
    with pytest.raises(InputError, match=r"the teacher is .*SHA-256 .*, the run's was .*SHA-256"):
        train.train(config, tmp_path / "run")


def test_a_teacher_that_cannot_teach_is_refused_before_the_run_begins(tmp_path):
    def refused(teacher, message):
        with pytest.raises(InputError, match=message):
            train.train(tiny_config(**{"distill.teacher": str(teacher)}), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused("nowhere.safetensors", "no file nowhere")
    seven = saved_teacher(tmp_path / "seven.safetensors", num_classes=7)
    refused(seven, r"the teacher .*seven.* has 7 classes, the data has 10 classes; give a")
    state = to_torch_state_dict(create_model("tiny", num_classes=10))
    trunk = {name: array for name, array in state.items() if not name.startswith("fc.")}
    write_torch_file(trunk, tmp_path / "trunk.pth")
    refused(
        tmp_path / "trunk.pth", r"the teacher .*trunk.* has no last layer, the data has 10 classes"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.shifts": 2}, r"shifts=2 do nothing without config\.distill\.teacher; give its"),
        ({"distill.temperature": 2.0}, r"config\.distill\.temperature=2\.0 and .* do nothing"),
        (
            {"distill.teacher": "x.pth", "optimizer.label_smoothing": 0.1},
            r"label_smoothing=0\.1 does nothing with config\.distill\.teacher",
        ),
        (
            {
                "distill.teacher": "x.pth",
                "distill.shifts": 2,
                "data.augmentation": "center_crop",
            },
            r"shifts=2 averages .*augmentation center_crop makes none; give random_shift",
        ),
    ],
)
def test_options_that_do_nothing_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        check_config(tiny_config(**changes), training=True)
