"""Runs that start from other weights."""

import numpy as np
import pytest
from flax import nnx

from aa_flax import InputError, create_model, to_torch_state_dict
from aa_flax.config import check_config
from aa_flax.data.sources import make_source
from aa_flax.training import start, train
from aa_flax.training.start import init_from, match_start, model_from_workdir
from aa_flax.weights import locate
from aa_flax.weights.fit import named_weights
from aa_flax.weights.save_load import save_weights, write_torch_file
from tests.training.tiny import tiny_config


@pytest.fixture(scope="module")
def baseline():
    return create_model("resnet18", num_classes=7, rngs=nnx.Rngs(1))


def assert_loaded(model, other, *left):
    given = named_weights(other)
    for name, variable in named_weights(model).items():
        if name not in left:
            np.testing.assert_array_equal(variable[...], given[name][...], err_msg=name)


def test_a_baselines_torch_file_starts_the_antialiased_model_by_one_update(
    baseline, tmp_path, capsys
):
    path = tmp_path / "baseline.pth"
    write_torch_file(to_torch_state_dict(baseline), path)
    model = create_model("resnet18_lpf4", num_classes=7)
    init_from(str(path), model)
    assert_loaded(model, baseline)
    assert f"starting from {path} (resnet18): 102 arrays loaded\n" == capsys.readouterr().out
    updated = create_model("resnet18_lpf4", num_classes=7)
    nnx.update(updated, nnx.state(baseline))
    assert_loaded(model, updated)


def test_another_number_of_classes_starts_with_a_random_last_layer(baseline, tmp_path, capsys):
    path = tmp_path / "baseline.safetensors"
    save_weights(baseline, path)
    model = create_model("resnet18_lpf5", num_classes=3)
    fresh = np.asarray(model.fc.kernel[...])
    init_from(str(path), model)
    assert_loaded(model, baseline, "fc.kernel", "fc.bias")
    np.testing.assert_array_equal(model.fc.kernel[...], fresh)
    expected = "100 arrays loaded; random at the start: fc.bias (7,), here (3,), fc.kernel"
    assert expected in capsys.readouterr().out


def test_published_weights_are_the_models_or_its_baselines(baseline, tmp_path, monkeypatch):
    asked = []

    def file_of(released):
        asked.append(released.filename)
        path = tmp_path / f"{released.model}.safetensors"
        model = create_model(released.model, num_classes=7, rngs=nnx.Rngs(1))
        save_weights(model, path)
        return path

    monkeypatch.setattr(locate, "published_file", file_of)
    for source in ("pretrained", "baseline"):
        model = create_model("resnet18_lpf4", num_classes=7)
        init_from(source, model)
        assert_loaded(model, baseline)
    assert asked[0].startswith("resnet18_lpf4_finetune")
    assert asked[1].startswith("resnet18-")


@pytest.mark.usefixtures("no_final_evaluation")
def test_a_run_starts_from_another_runs_best_checkpoint(tmp_path, capsys):
    config = tiny_config(num_epochs=1, max_steps_per_epoch=2)
    train.train(config, tmp_path / "first")
    config.init_from = str(tmp_path / "first")
    config.optimizer.learning_rate = 0.0
    train.train(config, tmp_path / "second")
    assert f"starting from {tmp_path / 'first'} (tiny): 7 arrays loaded" in capsys.readouterr().out
    first, second = (model_from_workdir(tmp_path / run)[0] for run in ("first", "second"))
    np.testing.assert_array_equal(first.conv.kernel[...], second.conv.kernel[...])


def test_weights_of_another_model_are_refused(baseline, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(baseline, path)
    with pytest.raises(InputError, match="has weights of resnet18; a resnet34 starts from those"):
        init_from(str(path), create_model("resnet34_lpf4", num_classes=7))
    with pytest.raises(InputError, match="no file nowhere"):
        init_from("nowhere.pth", create_model("resnet18", num_classes=7))


def test_a_backbone_without_its_head_starts_a_model_with_a_random_last_layer(
    baseline, tmp_path, capsys
):
    state = to_torch_state_dict(baseline)
    trunk = {name: array for name, array in state.items() if not name.startswith("fc.")}
    write_torch_file({"model": trunk}, tmp_path / "trunk.pt")
    model = create_model("resnet18_lpf4", num_classes=7)
    fresh = np.asarray(model.fc.kernel[...])
    init_from(str(tmp_path / "trunk.pt"), model)
    expected = "random at the start: fc.bias (not there), fc.kernel (not there)"
    assert expected in capsys.readouterr().out
    assert_loaded(model, baseline, "fc.kernel", "fc.bias")
    np.testing.assert_array_equal(model.fc.kernel[...], fresh)


@pytest.fixture
def tiny_weights(tmp_path):
    """Writes a file of a model whose batch norm has a trained bias, mean 0 and variance 1."""
    model = create_model("tiny", num_classes=10, rngs=nnx.Rngs(2))
    model.bn.bias.set_value(model.bn.bias[...] + 1)
    save_weights(model, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


def test_a_start_is_matched_to_the_model_of_its_weights(tiny_weights, monkeypatch):
    calls = []
    monkeypatch.setattr(start, "match_statistics", lambda *given: calls.append(given))
    model = create_model("tiny_lpf3", num_classes=10)
    weights = init_from(tiny_weights, model)
    config = check_config(tiny_config(match_images=70, init_from=tiny_weights), training=True)
    match_start(weights, model, config, make_source(config.data, "train"))
    ((given, origin, images),) = calls
    assert given is model
    assert (origin.name, images.shape) == ("tiny", (70, 40, 40, 3))
    assert_loaded(origin, model)


@pytest.mark.usefixtures("no_final_evaluation")
def test_a_run_matches_its_start_once(tiny_weights, tmp_path, capsys):
    config = tiny_config(
        num_epochs=1, max_steps_per_epoch=1, match_images=5, init_from=tiny_weights
    )
    train.train(config, tmp_path / "run")
    assert "statistics matched to those of tiny on 5 images" in capsys.readouterr().out
    train.train(config, tmp_path / "run")
    assert "matched" not in capsys.readouterr().out


def test_folded_statistics_are_not_re_estimated_by_a_run(tiny_weights, tmp_path):
    config = tiny_config(recalibrate_batches=1, init_from=tiny_weights)
    with pytest.raises(InputError, match="bn has mean 0 and variance 1"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_images_to_match_on_need_weights_to_match():
    with pytest.raises(InputError, match=r"match_images=5 .*give config\.init_from"):
        check_config(tiny_config(match_images=5), training=True)
