"""Training compared with the original: the same losses; its checkpoints resume here."""

import copy

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from aa_flax import InputError, create_model, load_torch_state_dict, to_torch_state_dict
from aa_flax.configs import resnet18_lpf4
from aa_flax.data.pixels import preprocess_batch
from aa_flax.runtime import data_mesh, put_batch, replicate
from aa_flax.training import train
from aa_flax.training.log import read_json_lines
from aa_flax.training.start import read_torch_run
from aa_flax.training.step import init_state, make_optimizer, make_schedule, make_train_step
from benchmarks.photos import originals
from benchmarks.reference import reference_model
from tests.training.tiny import tiny_config

STEPS, STEPS_PER_EPOCH, SIZE = 20, 5, 40


@pytest.fixture(scope="module")
def config():
    """Returns a short recipe of ResNet-18: a step of the rate after half of the twenty updates."""
    config = resnet18_lpf4.get_config()
    config.num_epochs = STEPS // STEPS_PER_EPOCH
    config.data.crop_size = SIZE
    config.optimizer.update(learning_rate=0.0002, step_epochs=2)
    return config


@pytest.fixture(scope="module")
def photos():
    """Sixteen photographs of different classes; half of them are mirrored."""
    images = [
        photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for photo in originals().values()
    ]
    count = len(images)
    flip = np.arange(count) % 2 == 0
    return {"image": np.stack(images), "label": np.arange(count, dtype=np.int32), "flip": flip}


@pytest.fixture(scope="module")
def torchs_run(config, photos):
    """Returns the original's losses, initial weights, and training checkpoint half way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # idle threads spin, and slow down others
    model = reference_model("resnet18_lpf4", num_classes=16).train()
    before = copy.deepcopy(model.state_dict())
    options = config.optimizer
    sgd = torch.optim.SGD(
        model.parameters(),
        lr=options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.StepLR(sgd, options.step_epochs, options.step_factor)
    images = np.asarray(preprocess_batch(photos, config.data)).transpose(0, 3, 1, 2)
    images, labels = torch.tensor(images.copy()), torch.tensor(photos["label"]).long()
    losses, checkpoint = [], None
    for step in range(STEPS):
        if step == STEPS // 2:
            checkpoint = {
                "epoch": scheduler.last_epoch,
                "arch": "resnet18_lpf4",
                "state_dict": {
                    f"module.{k}": v for k, v in copy.deepcopy(model.state_dict()).items()
                },
                "best_acc1": torch.tensor(50.0),
                "optimizer": copy.deepcopy(sgd.state_dict()),
            }
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        if (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()
        losses.append(loss.item())
    torch.set_num_threads(threads)
    return losses, before, checkpoint


@pytest.fixture(scope="module")
def our_losses(config, photos):
    """Returns a function to a model's losses in its remaining steps, by one compiled step."""
    mesh, schedule = (
        data_mesh(),
        make_schedule(
            config.optimizer,
            batch_size=config.batch_size,
            num_epochs=config.num_epochs,
            steps_per_epoch=STEPS_PER_EPOCH,
        ),
    )
    optimizer = make_optimizer(config.optimizer, schedule)
    train_step = make_train_step(
        create_model("resnet18_lpf4", num_classes=16),
        optimizer,
        lambda batch: preprocess_batch(batch, config.data),
        schedule=schedule,
        mesh=mesh,
    )

    def losses(model, torch_run=None):
        state = init_state(model, optimizer, mesh)
        if torch_run is not None:
            state = replicate(torch_run.state(state, STEPS_PER_EPOCH), mesh)
        batch, found = put_batch(photos, mesh), []
        for _ in range(int(state.step), STEPS):
            state, metrics = train_step(state, batch)
            found.append(float(metrics["loss"]) / len(photos["label"]))
        return found

    return losses


@pytest.mark.slow
def test_twenty_steps_follow_the_originals_loss(torchs_run, our_losses):
    expected, before, _ = torchs_run
    model = load_torch_state_dict(create_model("resnet18_lpf4", num_classes=16), before)
    np.testing.assert_allclose(our_losses(model), expected, rtol=1e-3)
    assert expected[-1] < 0.5 * expected[0]  # it learns


@pytest.mark.slow
def test_the_originals_training_checkpoint_resumes_here(torchs_run, our_losses, config, tmp_path):
    expected, _, checkpoint = torchs_run
    torch.save(checkpoint, tmp_path / "checkpoint.pth.tar")
    model = create_model("resnet18_lpf4", num_classes=16)
    run = read_torch_run(tmp_path / "checkpoint.pth.tar", model, config.optimizer, STEPS)
    assert run.epoch == 2
    found = our_losses(model, run)
    np.testing.assert_allclose(found, expected[STEPS // 2 :], rtol=1e-3)
    still = run._replace(momentum=jax.tree.map(lambda x: 0 * x, run.momentum))
    without = our_losses(model, still)
    assert not np.allclose(without, expected[STEPS // 2 :], rtol=1e-3)


@pytest.fixture
def tiny_checkpoint():
    """Returns a training checkpoint like torch's, of a model that trains quickly."""
    weights = to_torch_state_dict(create_model("tiny", num_classes=10))
    names = [name for name in weights if "running" not in name and "num_batches" not in name]
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 1e-4, "nesterov": False}
    return {
        "epoch": 2,
        "arch": "tiny",
        "state_dict": {name: torch.tensor(value) for name, value in weights.items()},
        "optimizer": {
            "state": {
                i: {"momentum_buffer": torch.ones(weights[name].shape)}
                for i, name in enumerate(names)
            },
            "param_groups": [{**options, "params": list(range(len(names)))}],
        },
    }


def test_a_run_of_the_original_is_evaluated_first_and_then_resumes(
    tiny_checkpoint, tmp_path, capsys
):
    torch.save(tiny_checkpoint, tmp_path / "checkpoint.pth.tar")
    config = tiny_config(num_epochs=4, max_steps_per_epoch=2)
    train.train(config, tmp_path / "run", resume=tmp_path / "checkpoint.pth.tar")
    assert "continuing after epoch 2 of 4" in capsys.readouterr().out
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [(row["epoch"], row["step"]) for row in rows] == [(2, 4), (3, 6), (4, 8)]
    assert "train_loss" not in rows[0]
    train.train(config, tmp_path / "run")
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("optimizer"), "no optimizer and epoch to resume; to start from its"),
        (lambda c: c.update(arch="resnet50"), "was trained as resnet50, not as tiny"),
        (lambda c: c.update(epoch=9), "has completed 9 epochs, config.num_epochs is 3"),
        (lambda c: c["optimizer"]["param_groups"].append({}), "2 groups of parameters"),
        (lambda c: _group(c).pop("momentum"), "not trained by SGD with plain momentum"),
        (lambda c: _group(c).update(nesterov=True), "not trained by SGD with plain momentum"),
        (lambda c: _group(c).update(weight_decay=0.5), "config.optimizer.weight_decay=0.5"),
        (lambda c: _group(c)["params"].pop(), "an optimizer of 4 parameters, tiny has 5"),
        (
            lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.ones(3)),
            "a momentum of shape",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused_with_the_reason(
    change, message, tiny_checkpoint, tmp_path
):
    change(tiny_checkpoint)
    torch.save(tiny_checkpoint, tmp_path / "checkpoint.pth.tar")
    with pytest.raises(InputError, match=message):
        train.train(tiny_config(), tmp_path / "run", resume=tmp_path / "checkpoint.pth.tar")
    assert not (tmp_path / "run").exists()


def _group(checkpoint):
    return checkpoint["optimizer"]["param_groups"][0]
