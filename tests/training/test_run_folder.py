"""The folder of a run: locks, resuming the same run, foreign files, and a full disk."""

import copy
import errno
import json
import os
import resource
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aa_flax import InputError
from aa_flax import train as command
from aa_flax.config import check_config
from aa_flax.training import run_folder, train
from aa_flax.training.log import JsonLines, read_json_lines
from aa_flax.training.run_folder import (
    RunFolder,
    check_same_config,
    check_same_data,
    describe_data,
    write_json,
)
from aa_flax.weights import save_load as weights_files
from aa_flax.weights.checkpoints import Record
from tests.training.tiny import fake_wandb, short_config, tiny_config

quick = pytest.mark.usefixtures("no_final_evaluation")


def test_two_runs_in_one_folder_are_refused(tmp_path):
    for _ in range(2):  # despite files of the first attempt
        with (
            RunFolder(tmp_path).locked(),
            pytest.raises(InputError, match=r"in progress .*\(process \d+ on"),
        ):
            train.train(short_config(), tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_reported_and_trained_on(
    code, tmp_path, monkeypatch, capsys
):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        with RunFolder(tmp_path).locked():
            assert f"without locks ({os.strerror(code)})" in capsys.readouterr().out


@quick
@pytest.mark.parametrize("name", ["lock", "config.json", "metrics.jsonl", "wandb_run_id"])
def test_a_link_of_somebody_else_is_never_followed(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb([], []))
    precious, content = tmp_path / "precious", "precious"
    if name == "wandb_run_id":  # an existing id is used; a broken link is not one
        content = None
    else:
        precious.write_text(content)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(precious)
    config = short_config(**{"log.wandb": True})
    if name == "lock":
        with pytest.raises(InputError, match=r"lock is a link, .*; remove it"):
            train.train(config, tmp_path / "run")
    else:
        train.train(config, tmp_path / "run")
        assert not (tmp_path / "run" / name).is_symlink()
    assert (precious.read_text() if precious.exists() else None) == content


def test_a_workdir_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=r"file is a file, but a directory is needed; give"):
            train.train(short_config(), workdir)
    with pytest.raises(InputError, match=r"--workdir /proc/run cannot be "):
        train.train(short_config(), Path("/proc/run"))
    with pytest.raises(InputError, match=r"--workdir .*: File name too long; give another"):
        train.train(short_config(), tmp_path / ("x" * 300))


@pytest.mark.parametrize("name", ["checkpoints", "weights.safetensors", "metrics.jsonl", "lock"])
def test_a_file_instead_of_a_directory_is_refused_before_training(name, tmp_path):
    (tmp_path / name).mkdir() if name != "checkpoints" else (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=f"{name} is .*; give another --workdir"):
        train.train(short_config(), tmp_path)


def test_weights_whose_checkpoints_are_gone_are_not_replaced(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"whose checkpoints are gone.*remove weights"):
        train.train(short_config(), tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.fixture
def full_disk():
    """Returns a function after which this process cannot write to files."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Orbax awaits its writes together and stops at the first failure; nobody awaits the others.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@quick
@pytest.mark.parametrize(
    ("owner", "name", "file"),
    [
        (RunFolder, "_take_lock", "lock"),
        (RunFolder, "claim", "config.json"),
        (run_folder, "versions", "versions.json"),
        (JsonLines, "write", "metrics.jsonl"),
    ],
)
def test_a_disk_that_is_full_at_any_file_is_one_line_and_the_run_continues(
    owner, name, file, tmp_path, monkeypatch, full_disk
):
    real = getattr(owner, name)

    def fill(*arguments, **options):
        full_disk()
        return real(*arguments, **options)

    config = tiny_config(num_epochs=2, max_steps_per_epoch=2)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fill)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with pytest.raises(InputError, match=rf"{tmp_path / file}\b.* make room there") as caught:
            train.train(config, tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    train.train(config, tmp_path)
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [2, 4]


@quick
def test_weights_that_cannot_be_written_are_written_by_the_next_start(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(weights_files, "save_file", full)
        with pytest.raises(InputError, match=r"weights.safetensors cannot .*No space .* make room"):
            train.train(short_config(), tmp_path)
    train.train(short_config(), tmp_path)
    assert (tmp_path / "weights.safetensors").exists()


def test_any_other_error_of_the_system_is_one_line_of_the_command(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events.tfevents")

    monkeypatch.setattr("aa_flax.train.train", full)
    monkeypatch.setattr("aa_flax.cli.config_and_workdir", lambda: ("config", "run"))
    given = types.SimpleNamespace(resume=None, accept_data_change=False)
    monkeypatch.setattr("absl.flags.FLAGS", given)
    with pytest.raises(InputError, match=r"^events\.tfevents: No space left on device; see to"):
        command._train()


class Images:
    """A source with given classes, number of images, and digest."""

    def __init__(self, count, names="abc", digest=None):
        self.class_names, self.num_classes, self._count = tuple(names), len(names), count
        if digest:
            self.digest = lambda: digest

    def __len__(self):
        return self._count


def data(train, val, steps=2):
    return describe_data({"train": train, "val": val}, steps)


LATEST = Record(step=6, epoch=3, top1=1.0, checksums={}, num_classes=3, config={})
BEFORE = data(Images(24, digest="d"), Images(9))


def check(now, workdir, *, before=BEFORE, accept=False, epochs=9):
    if before is not None:
        write_json(workdir / "data.json", before)
    check_same_data(now, epochs, workdir, LATEST, accept=accept)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (data(Images(24, "abcd"), Images(9, "abcd")), "has 4 classes, the run 3: added d"),
        (data(Images(24, "ab"), Images(9, "ab")), "has 2 classes, the run 3: removed c"),
        (data(Images(24, "xbc"), Images(9)), "has 3 classes, the run 3: added x; removed a"),
        (data(Images(24, "bac"), Images(9)), r"training set's .*logit 0 was a, now b"),
        (data(Images(24), Images(9, "acb")), r"validation set's .*logit 1 was b, now c"),
    ],
)
def test_other_classes_are_refused_be_they_accepted_or_not(now, message, tmp_path):
    for accept in (False, True):
        with pytest.raises(InputError, match=message + r"\. Restore the classes .*--workdir"):
            check(now, tmp_path, accept=accept)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            data(Images(48), Images(9), steps=4),
            r"has 48 images, the run's had 24, so an epoch has 4 steps instead of 2: epochs and",
        ),
        (data(Images(25), Images(9)), r"training set has 25 images, the run's had 24\. Give --acc"),
        (data(Images(24, digest="e"), Images(9)), "the training set has other images or labels"),
        (data(Images(24), Images(8)), "the validation set has 8 images, the run's had 9"),
    ],
)
def test_other_images_are_refused_unless_accepted(now, message, tmp_path, capsys):
    with pytest.raises(InputError, match=message):
        check(now, tmp_path)
    check(now, tmp_path, accept=True)
    assert "the data has changed, as accepted" in capsys.readouterr().out


def test_the_same_data_passes_also_where_one_side_has_no_digest(tmp_path):
    check(BEFORE, tmp_path)
    check(data(Images(24), Images(9)), tmp_path)


def test_accepted_data_that_leaves_nothing_to_train_is_an_error(tmp_path):
    shorter = data(Images(12), Images(9), steps=1)
    check(shorter, tmp_path, accept=True, epochs=7)
    with pytest.raises(InputError, match="step 6 is after the last of 6 epochs, so nothing is"):
        check(shorter, tmp_path, accept=True, epochs=6)


@pytest.mark.parametrize("content", ["{", "[]", '{"train": 5}', "\0"])
def test_a_damaged_data_json_is_an_error(content, tmp_path):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(InputError, match=r"data\.json is not the data of a run"):
        check(BEFORE, tmp_path, before=None)


def files(folder: Path) -> dict[str, bytes]:
    """Returns every file in a folder except its lock."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_finished_run_is_reported_at_once_if_nothing_is_missing(tmp_path, capsys, monkeypatch):
    config = tiny_config(num_epochs=1, max_steps_per_epoch=2)
    results = train.train(config, tmp_path)
    assert f"in {tmp_path}" in capsys.readouterr().out  # the initial line
    with monkeypatch.context() as patch:
        patch.setattr(train, "new_model", None)  # before the model is created
        assert train.train(config, tmp_path) == results
    output = capsys.readouterr().out
    assert f"the run in {tmp_path} is finished" in output
    assert f"{results['top1']:.2f}" in output
    (tmp_path / "results.json").unlink()
    assert train.train(config, tmp_path) == results
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "is finished" not in capsys.readouterr().out


def test_a_config_is_compared_by_value_where_a_missing_one_is_default(tmp_path):
    config = check_config(tiny_config()).to_dict()
    before = copy.deepcopy(config)
    del before["pool"], before["model_options"]
    before["data"]["on_error"] = "skip"  # a run that stopped at an image may resume without it
    check_same_config(before, config, tmp_path)
    before["seed"] = 5
    with pytest.raises(InputError, match=r"another config .config\.seed: 5 there, 0 now.; give"):
        check_same_config(before, config, tmp_path)


def test_a_folder_of_images_that_gets_a_class_or_an_image_keeps_its_run(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(train, "evaluate_config", lambda *_, **__: {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(label):
        for path in (
            tmp_path / split / label / f"{i}.png" for split in ("train", "val") for i in (0, 1)
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(path)

    write("a")
    write("b")
    changes = {
        "batch_size": 4,
        "num_epochs": 1,
        "optimizer.schedule": "step",
        "data.name": "folder",
        "data.path": str(tmp_path),
    }
    train.train(tiny_config(**changes), tmp_path / "run")
    checkpoints = files(tmp_path / "run")
    write("c")
    for _ in range(2):
        with pytest.raises(InputError, match="the data has 3 classes, the run 2: added c"):
            train.train(tiny_config(**changes), tmp_path / "run")
    shutil.rmtree(tmp_path / "train" / "c")
    shutil.rmtree(tmp_path / "val" / "c")
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "train" / "a" / "2.png")
    for i in range(3, 7):
        shutil.copy(tmp_path / "train" / "a" / "1.png", tmp_path / "train" / "a" / f"{i}.png")
    with pytest.raises(InputError, match="has 8 images, the run's had 4, so an epoch has 2 steps"):
        train.train(tiny_config(**changes), tmp_path / "run")
    assert files(tmp_path / "run") == checkpoints
    changes["num_epochs"] = 2
    train.train(tiny_config(**changes), tmp_path / "run", accept_data_change=True)
    train.train(tiny_config(**changes), tmp_path / "run")  # it is this run's data from now on
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train"]["images"] == 8
