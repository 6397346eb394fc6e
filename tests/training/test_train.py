import json
import os
import signal
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError, create_model, recalibrate_batch_norm
from aa_flax.data.batches import training_batches, unheard_by_children
from aa_flax.data.pixels import preprocess_batch
from aa_flax.data.sources import make_source
from aa_flax.training import loop, train
from aa_flax.training.log import JsonLines, read_json_lines
from aa_flax.training.start import model_from_workdir
from aa_flax.training.stopping import Stopped, StopRequest
from aa_flax.weights.checkpoints import Checkpoints
from aa_flax.weights.read import read_metadata
from aa_flax.weights.save_load import load_weights
from tests.training.tiny import fake_wandb, short_config, tiny_config

quick = pytest.mark.usefixtures("no_final_evaluation")


def weights_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))


def test_a_finished_run_has_results_weights_metrics_config_and_versions(tmp_path, capsys):
    results = train.train(tiny_config(), tmp_path)
    output = capsys.readouterr().out
    assert "compiled the training step in" in output
    assert "epoch   3/3  train loss" in output
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["model"] == "tiny"
    assert json.loads((tmp_path / "config.json").read_text())["num_epochs"] == 3
    assert json.loads((tmp_path / "versions.json").read_text())["devices"] == 2

    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [6, 12, 18]
    best = max(rows, key=lambda row: row["val_top1"])
    assert best["val_top1"] == results["top1"]
    model, description = model_from_workdir(tmp_path)
    assert description == f"{tmp_path} (epoch {best['epoch']}, the best)"
    assert results["weights"]["epoch"] == best["epoch"]
    assert results["weights"]["file"] == str(tmp_path)
    saved = load_weights(create_model("tiny", num_classes=10), tmp_path / "weights.safetensors")
    assert read_metadata(tmp_path / "weights.safetensors")["source"] == description
    for a, b in zip(*map(_leaves, (saved, model)), strict=True):
        np.testing.assert_array_equal(a, b)


def _leaves(model):
    return [np.asarray(v[...]) for _, v in nnx.to_flat_state(nnx.state(model, nnx.Param))]


def test_a_run_continues_with_its_own_config_alone(tmp_path, capsys):
    train.train(short_config(), tmp_path)
    with pytest.raises(InputError, match=r"config\.batch_size: 64 there, 32 now; config\.seed: 0"):
        train.train(short_config(batch_size=32, seed=1), tmp_path)
    free = {"log.tensorboard": True, "data.num_workers": 1, "eval.passes": 2, "data.path": "moved"}
    assert train.train(short_config(**free), tmp_path)["passes"] == 2
    assert "continuing after epoch 1 of 1" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"config\.num_epochs: 1 there, 2 now"):
        train.train(tiny_config(num_epochs=2, max_steps_per_epoch=2), tmp_path)


@quick
def test_a_run_on_a_step_schedule_can_be_prolonged(tmp_path):
    steps = {"max_steps_per_epoch": 2, "optimizer.schedule": "step"}
    train.train(tiny_config(num_epochs=1, **steps), tmp_path / "longer")
    train.train(tiny_config(num_epochs=2, **steps), tmp_path / "longer")
    train.train(tiny_config(num_epochs=2, **steps), tmp_path / "whole")
    ends = [model_from_workdir(tmp_path / run, step=4)[0] for run in ("longer", "whole")]
    for a, b in zip(*map(_leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


@quick
def test_a_config_without_a_checkpoint_yet_may_be_changed(tmp_path):
    with pytest.raises(InputError, match=r"unknown config\.optimizer\.schedule"):
        train.train(short_config(**{"optimizer.schedule": "cosin"}), tmp_path)
    train.train(short_config(), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(tmp_path):
    config = tiny_config(**{"optimizer.schedule": "step", "optimizer.learning_rate": 1e30})
    with pytest.raises(InputError, match=r"after step \d at learning rate 1e\+30; there is no"):
        train.train(config, tmp_path)
    config.optimizer.update(learning_rate=1e-3, step_epochs=1, step_factor=1e30)
    with pytest.raises(InputError, match=r"last good checkpoint is of step 6 \(epoch 1\)"):
        train.train(config, tmp_path)


@quick
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_run_stopped_in_evaluation_saves_and_evaluates_the_epoch_later(
    number, tmp_path, monkeypatch
):
    def stop(*_):
        os.kill(os.getpid(), number)
        raise AssertionError("evaluation went on")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accuracy_on", stop)
        with pytest.raises(Stopped, match=r"after step 6 .in epoch 1.*the same command continues"):
            train.train(tiny_config(), tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest[:3] == (6, 1, None)
    train.train(tiny_config(), tmp_path)
    train.train(tiny_config(), tmp_path / "whole")
    rows, expected = (
        [(row["epoch"], row["val_loss"]) for row in read_json_lines(folder / "metrics.jsonl")]
        for folder in (tmp_path, tmp_path / "whole")
    )
    assert rows == expected


@quick
@pytest.mark.parametrize(
    "name", ["make_sources", "new_model", "train_epochs", "save_weights", "locate"]
)
def test_a_run_stopped_before_or_after_its_steps_stops_at_once_and_continues(
    name, tmp_path, monkeypatch
):
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the run went on")

    with monkeypatch.context() as patch:
        patch.setattr(train, name, stop)
        with pytest.raises(Stopped, match="stopped; the same command continues"):
            train.train(short_config(), tmp_path)
    train.train(short_config(), tmp_path)
    assert (tmp_path / "weights.safetensors").exists()


@pytest.mark.usefixtures("heard")
def test_a_second_ctrl_c_stops_at_once():
    with StopRequest() as stop, stop.interruptible(False):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reached(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # afterwards Ctrl-C is handled by Python again
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_that_a_shell_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.reached(1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_reaches_no_process_started_unheard():
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with unheard_by_children():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_model_that_cannot_train_on_its_images_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match=r"data\.crop_size 2.* is too small"):
        train.train(short_config(**{"data.crop_size": 2}), tmp_path / "run")
    alone = {"batch_size": 2, "batch_stat_groups": 2, "data.crop_size": 2}
    with pytest.raises(InputError, match=r"1 images in a part .*more than one value for each"):
        train.train(short_config(**alone), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lines_that_are_not_rows_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 3}\n{"step": "x"}\n[1]\nnull\n{"a": 1}\n\xff\xfe\n{"step": 5}\n{"st'
    )
    JsonLines(path, start_step=4).close()
    assert path.read_text() == '{"step": 3}\n'


@quick
def test_a_profile_is_written_on_request(tmp_path, capsys):
    train.train(tiny_config(num_epochs=1, max_steps_per_epoch=11, profile=True), tmp_path)
    assert f"profile written to {tmp_path / 'profile'}" in capsys.readouterr().out
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@quick
def test_a_start_too_short_for_a_profile_is_reported(tmp_path, capsys):
    train.train(short_config(profile=True), tmp_path)
    assert "no profile: it begins after 5 steps, this start had 2" in capsys.readouterr().out


def test_a_folder_without_a_run_or_a_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match=f"no run in {tmp_path}.*train first"):
        model_from_workdir(tmp_path)
    (tmp_path / "config.json").write_text(tiny_config().to_json())
    with pytest.raises(InputError, match="no checkpoint yet"):
        model_from_workdir(tmp_path)


@quick
def test_tensorboard_gets_the_metrics(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train.train(short_config(**{"log.tensorboard": True}), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    row = read_json_lines(tmp_path / "metrics.jsonl")[-1]
    (event,) = events.Tensors("val_loss")
    assert event.step == row["step"]
    assert event.tensor_proto.float_val[0] == pytest.approx(row["val_loss"])


@quick
def test_weights_and_biases_gets_the_metrics_and_the_same_run_when_resumed(tmp_path, monkeypatch):
    began, logged = [], []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(began, logged))
    config = short_config(**{"log.wandb": True})
    train.train(config, tmp_path)
    train.train(config, tmp_path)
    assert [options["id"] for options in began] == ["id0", "id0"]
    assert began[0]["config"]["model"] == "tiny"
    row = read_json_lines(tmp_path / "metrics.jsonl")[-1]
    assert logged == [(2, {name: value for name, value in row.items() if name != "step"})]


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(InputError, match=rf"pip install 'aa_flax\[{extra}\]'"):
        train.train(short_config(**{f"log.{extra}": True}), tmp_path)


@quick
def test_batch_statistics_can_be_re_estimated_before_each_evaluation(tmp_path):
    config = tiny_config(num_epochs=1, max_steps_per_epoch=1, recalibrate_batches=3)
    config.model = "tiny_plain"
    config.optimizer.learning_rate = 0.0
    train.train(config, tmp_path)
    model, _ = model_from_workdir(tmp_path)
    fresh = create_model("tiny_plain", num_classes=10, rngs=nnx.Rngs(config.seed))
    source = make_source(config.data, "train")
    batches = training_batches(source, 64, config.data, seed=config.seed)
    images = [preprocess_batch(batch, config.data) for batch in islice(batches, 3)]
    recalibrate_batch_norm(fresh, images)
    assert model.bn.mean[...].std() > 0
    for name in ("mean", "var"):
        found, expected = getattr(model.bn, name), getattr(fresh.bn, name)
        np.testing.assert_allclose(found[...], expected[...], rtol=1e-4)


@quick
def test_recalibration_of_a_model_without_batch_norm_is_refused_before_training(tmp_path):
    config = tiny_config(recalibrate_batches=1, model_options={"batch_norm": False})
    with pytest.raises(InputError, match="tiny has no batch norm"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
