import json

import jax
import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError
from aa_flax.training import loop
from aa_flax.training.checkpoints import Checkpoints
from configs import digits_resnet18_lpf4


@pytest.fixture
def config():
    """Two short epochs of the quickstart."""
    config = digits_resnet18_lpf4.get_config()
    config.num_epochs = 2
    config.batch_size = 448
    config.eval.passes = 1
    config.data.augmentation = "random_shift"
    return config


def latest_state(workdir, model):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest_epoch == 2
        checkpoints.restore_model(2, model)
    return jax.tree.leaves(nnx.state(model))


def test_an_interrupted_run_continues_bit_for_bit(config, tmp_path, monkeypatch, capsys):
    expected = loop.train(config, tmp_path / "whole")

    def interrupt(*_):
        raise KeyboardInterrupt

    save = Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda *args: (save(*args), interrupt()))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, tmp_path / "cut")
    found = loop.train(config, tmp_path / "cut")
    assert "continuing after epoch 1 of 2" in capsys.readouterr().out
    figures = ("top1", "top5", "loss", "consistency", "top1_shifted")
    assert [found[f] for f in figures] == [expected[f] for f in figures]
    model = loop.model_of(config)
    whole, cut = (latest_state(tmp_path / run, model) for run in ("whole", "cut"))
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_leaves_results_and_loads_again(config, tmp_path, capsys):
    config.num_epochs = 1
    results = loop.train(config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["model"] == "resnet18_lpf4"
    assert results["num_images"] == 450
    assert f"written to {tmp_path / 'results.json'}" in capsys.readouterr().out
    model = loop.model_of(config)
    assert loop.load_weights_of(tmp_path, model) == results["weights"]

    config.batch_size = 224
    with pytest.raises(InputError, match=r"config\.batch_size: 448 there, 224 now"):
        loop.train(config, tmp_path)
    config.model = "resnet18"
    with pytest.raises(InputError, match="trained resnet18_lpf4, not resnet18"):
        loop.load_weights_of(tmp_path, loop.model_of(config))


def test_a_folder_without_a_run_or_a_checkpoint_is_named(config, tmp_path):
    model = loop.model_of(config)
    with pytest.raises(InputError, match=f"no run in {tmp_path}.*train first"):
        loop.load_weights_of(tmp_path, model)
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(InputError, match="no checkpoint yet"):
        loop.load_weights_of(tmp_path, model)
