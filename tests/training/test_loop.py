import json
import os
import signal
import sys
import types

import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError, create_model
from aa_flax.training import loop
from aa_flax.training.checkpoints import Checkpoints
from aa_flax.training.initialise import model_from_workdir
from aa_flax.training.reporting import read_json_lines
from aa_flax.training.stopping import Stopped
from aa_flax.weights.files import load_weights, read_metadata
from tests.training.tiny import tiny_config


@pytest.fixture
def no_final_evaluation(monkeypatch):
    """Saves the time of a compilation where the final results do not matter."""
    monkeypatch.setattr(loop, "evaluate_config", lambda *_, **__: {})


quick = pytest.mark.usefixtures("no_final_evaluation")


def short_config(**changes):
    return tiny_config(num_epochs=1, max_steps_per_epoch=2, **changes)


def weights_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))


def test_a_finished_run_leaves_its_results_weights_figures_config_and_versions(tmp_path, capsys):
    results = loop.train(tiny_config(), tmp_path)
    told = capsys.readouterr().out
    assert "compiled the training step in" in told
    assert "epoch   3/3  train loss" in told
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
    loop.train(short_config(), tmp_path)
    with pytest.raises(InputError, match=r"config\.batch_size: 64 there, 32 now; config\.seed: 0"):
        loop.train(short_config(batch_size=32, seed=1), tmp_path)
    free = {"log.tensorboard": True, "data.num_workers": 1, "eval.passes": 2, "data.path": "moved"}
    assert loop.train(short_config(**free), tmp_path)["passes"] == 2
    assert "continuing after epoch 1 of 1" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"config\.num_epochs: 1 there, 2 now"):
        loop.train(tiny_config(num_epochs=2, max_steps_per_epoch=2), tmp_path)


@quick
def test_a_run_on_a_step_schedule_can_be_prolonged(tmp_path):
    steps = {"max_steps_per_epoch": 2, "optimizer.schedule": "step"}
    loop.train(tiny_config(num_epochs=1, **steps), tmp_path / "longer")
    loop.train(tiny_config(num_epochs=2, **steps), tmp_path / "longer")
    loop.train(tiny_config(num_epochs=2, **steps), tmp_path / "whole")
    ends = [model_from_workdir(tmp_path / run, step=4)[0] for run in ("longer", "whole")]
    for a, b in zip(*map(_leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


@quick
def test_a_config_without_a_checkpoint_yet_may_be_changed(tmp_path):
    with pytest.raises(InputError, match=r"unknown config\.optimizer\.schedule"):
        loop.train(short_config(**{"optimizer.schedule": "cosin"}), tmp_path)
    loop.train(short_config(), tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    from aa_flax.training.workdir import locked

    with locked(tmp_path), pytest.raises(InputError, match=r"in progress in .*\(process \d+ on"):
        loop.train(short_config(), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    config = tiny_config(**{"optimizer.schedule": "step", "optimizer.learning_rate": 1e30})
    with pytest.raises(InputError, match=r"after step \d at learning rate 1e\+30; there is no"):
        loop.train(config, tmp_path)
    config.optimizer.update(learning_rate=1e-3, step_epochs=1, step_factor=1e30)
    with pytest.raises(InputError, match=r"last good checkpoint is of step 6 \(epoch 1\)"):
        loop.train(config, tmp_path)


@quick
def test_sigterm_in_evaluation_saves_and_the_epoch_is_evaluated_later(tmp_path, monkeypatch):
    def told_to_stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("evaluation went on")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accuracy_on", told_to_stop)
        with pytest.raises(Stopped, match=r"after step 6 .in epoch 1.*the same command continues"):
            loop.train(tiny_config(), tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest[:3] == (6, 1, None)
    loop.train(tiny_config(), tmp_path)
    loop.train(tiny_config(), tmp_path / "whole")
    rows, expected = (
        [(row["epoch"], row["val_loss"]) for row in read_json_lines(folder / "metrics.jsonl")]
        for folder in (tmp_path, tmp_path / "whole")
    )
    assert rows == expected


def test_batches_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(InputError, match="64 does not divide into 3 micro-batches on 2 devices"):
        loop.train(short_config(**{"optimizer.accumulation_steps": 3}), tmp_path)
    with pytest.raises(InputError, match="does not divide into 1 micro-batches of 5 groups"):
        loop.train(short_config(batch_stat_groups=5), tmp_path)
    with pytest.raises(InputError, match=r"eval\.batch_size 33 does not divide among 2 devices"):
        loop.train(short_config(**{"eval.batch_size": 33}), tmp_path)


def test_images_too_small_for_the_net_or_for_the_shifts_show_at_once(tmp_path):
    with pytest.raises(InputError, match=r"images of 48 pixels .* crops of 40 at offsets 0\.\.9;"):
        loop.train(short_config(**{"eval.shift_range": 10}), tmp_path)
    with pytest.raises(InputError, match=r"data\.crop_size 2: .* is too small"):
        loop.train(short_config(**{"data.crop_size": 2}), tmp_path)


@quick
def test_a_profile_is_written_if_asked(tmp_path, capsys):
    loop.train(tiny_config(num_epochs=2, profile=True), tmp_path)
    assert f"profile written to {tmp_path / 'profile'}" in capsys.readouterr().out
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_folder_without_a_run_or_a_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match=f"no run in {tmp_path}.*train first"):
        model_from_workdir(tmp_path)
    (tmp_path / "config.json").write_text(tiny_config().to_json())
    with pytest.raises(InputError, match="no checkpoint yet"):
        model_from_workdir(tmp_path)


@quick
def test_tensorboard_shows_the_figures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loop.train(short_config(**{"log.tensorboard": True}), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    row = read_json_lines(tmp_path / "metrics.jsonl")[-1]
    (event,) = events.Tensors("val_loss")
    assert event.step == row["step"]
    assert event.tensor_proto.float_val[0] == pytest.approx(row["val_loss"])


@quick
def test_weights_and_biases_gets_the_figures_and_the_same_run_when_continued(tmp_path, monkeypatch):
    began, logged = [], []
    run = types.SimpleNamespace(
        log=lambda figures, step: logged.append((step, figures)), finish=lambda: None
    )
    fake = types.SimpleNamespace(
        util=types.SimpleNamespace(generate_id=lambda: f"id{len(began)}"),
        init=lambda **options: began.append(options) or run,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = short_config(**{"log.wandb": True})
    loop.train(config, tmp_path)
    loop.train(config, tmp_path)
    assert [options["id"] for options in began] == ["id0", "id0"]
    assert began[0]["config"]["model"] == "tiny"
    row = read_json_lines(tmp_path / "metrics.jsonl")[-1]
    assert logged == [(2, {name: value for name, value in row.items() if name != "step"})]


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(InputError, match=rf"pip install 'aa_flax\[{extra}\]'"):
        loop.train(short_config(**{f"log.{extra}": True}), tmp_path)
