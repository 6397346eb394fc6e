"""A run is never harmed by its own resume: what it depends on is compared before all else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aa_flax import InputError
from aa_flax.config import Config, check_config
from aa_flax.training import loop
from aa_flax.training.checkpoints import Record
from aa_flax.training.same_run import check_same_config, check_same_data, describe_data
from aa_flax.training.workdir import write_json
from tests.training.tiny import tiny_config


class Images:
    """What is asked of a source: its classes, their number, and its digest."""

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
    check_same_data(now, Config(num_epochs=epochs), workdir, LATEST, accept=accept)


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
def test_other_images_are_told_and_refused_unless_accepted(now, message, tmp_path, capsys):
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
    with pytest.raises(InputError, match="step 6 is behind the last of 6 epochs, so nothing is"):
        check(shorter, tmp_path, accept=True, epochs=6)


def test_a_run_of_an_earlier_version_is_compared_by_its_number_of_classes(tmp_path):
    check(data(Images(48), Images(9)), tmp_path, before=None)
    with pytest.raises(InputError, match="the data has 4 classes, the run 3"):
        check(data(Images(24, "abcd"), Images(9, "abcd")), tmp_path, before=None)


@pytest.mark.parametrize("content", ["{", "[]", '{"train": 5}', "\0"])
def test_a_record_that_is_not_whole_is_an_error(content, tmp_path):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(InputError, match=r"data\.json is not the data of a run"):
        check(BEFORE, tmp_path, before=None)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but its lock."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_finished_run_says_so_at_once_unless_something_is_missing(tmp_path, capsys, monkeypatch):
    config = tiny_config(num_epochs=1, max_steps_per_epoch=2)
    results = loop.train(config, tmp_path)
    assert f"in {tmp_path}" in capsys.readouterr().out  # the line at the start
    with monkeypatch.context() as patch:
        patch.setattr(loop, "model_of", None)  # not even the net is made
        assert loop.train(config, tmp_path) == results
    told = capsys.readouterr().out
    assert f"the run in {tmp_path} is finished" in told
    assert f"{results['top1']:.2f}" in told
    (tmp_path / "results.json").unlink()
    assert loop.train(config, tmp_path) == results
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "is finished" not in capsys.readouterr().out


def test_options_that_the_schedule_ignores_do_not_make_another_run(tmp_path):
    config = check_config(tiny_config())
    stored = config.to_dict()
    stored["optimizer"]["per_step"] = True  # as an earlier quickstart had it
    del stored["pool"], stored["model_options"]  # which an earlier version did not know
    write_json(tmp_path / "config.json", stored)
    check_same_config(config, tmp_path)
    stored["seed"] = 5
    write_json(tmp_path / "config.json", stored)
    with pytest.raises(InputError, match=r"another config .config\.seed: 5 there, 0 now.; give"):
        check_same_config(config, tmp_path)


def test_without_its_config_a_run_is_compared_by_its_checkpoints(tmp_path):
    stored = check_config(tiny_config()).to_dict()
    latest = LATEST._replace(config=stored)
    check_same_config(check_config(tiny_config()), tmp_path, latest)
    with pytest.raises(InputError, match=r"another config .config\.batch_size: 64 there, 32 now"):
        check_same_config(check_config(tiny_config(batch_size=32)), tmp_path, latest)


def test_a_run_that_stopped_at_an_image_may_go_on_without_it(tmp_path):
    write_json(tmp_path / "config.json", check_config(tiny_config()).to_dict())
    check_same_config(check_config(tiny_config(**{"data.on_error": "skip"})), tmp_path)


def test_a_folder_of_images_that_gets_a_class_or_an_image_keeps_its_run(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(loop, "evaluate_config", lambda *_, **__: {})
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
    loop.train(tiny_config(**changes), tmp_path / "run")
    checkpoints = files(tmp_path / "run")
    write("c")
    for _ in range(2):
        with pytest.raises(InputError, match="the data has 3 classes, the run 2: added c"):
            loop.train(tiny_config(**changes), tmp_path / "run")
    shutil.rmtree(tmp_path / "train" / "c")
    shutil.rmtree(tmp_path / "val" / "c")
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "train" / "a" / "2.png")
    for i in range(3, 7):
        shutil.copy(tmp_path / "train" / "a" / "1.png", tmp_path / "train" / "a" / f"{i}.png")
    with pytest.raises(InputError, match="has 8 images, the run's had 4, so an epoch has 2 steps"):
        loop.train(tiny_config(**changes), tmp_path / "run")
    assert files(tmp_path / "run") == checkpoints
    changes["num_epochs"] = 2
    loop.train(tiny_config(**changes), tmp_path / "run", accept_data_change=True)
    loop.train(tiny_config(**changes), tmp_path / "run")  # it is this run's data now
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train"]["images"] == 8
