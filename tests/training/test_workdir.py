"""The folder of a run: one run at a time, nobody else's files, and a disk that is full."""

import errno
import os
import resource
import sys
import types
from pathlib import Path

import pytest

from aa_flax import InputError
from aa_flax import train as command
from aa_flax.training import loop
from aa_flax.training import workdir as of_workdir
from aa_flax.training.reporting import read_json_lines
from aa_flax.training.workdir import locked
from tests.training.tiny import fake_wandb, short_config, tiny_config

# Orbax leaves writes pending when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
quick = pytest.mark.usefixtures("no_final_evaluation")


def test_two_runs_in_one_folder_are_refused(tmp_path):
    for _ in range(2):  # whatever the first attempt left
        with locked(tmp_path), pytest.raises(InputError, match=r"in progress .*\(process \d+ on"):
            loop.train(short_config(), tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_reported_and_trained_on(
    code, tmp_path, monkeypatch, capsys
):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        with locked(tmp_path):
            assert f"without locks ({os.strerror(code)})" in capsys.readouterr().out


@quick
@pytest.mark.parametrize("name", ["lock", "config.json", "metrics.jsonl", "wandb_run_id"])
def test_a_link_of_somebody_else_is_never_written_through(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb([], []))
    precious, content = tmp_path / "precious", "precious"
    if name == "wandb_run_id":  # an id that is there is used; a link to nothing is no id
        content = None
    else:
        precious.write_text(content)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(precious)
    config = short_config(**{"log.wandb": True})
    if name == "lock":
        with pytest.raises(InputError, match=r"lock is a link, .*; remove it"):
            loop.train(config, tmp_path / "run")
    else:
        loop.train(config, tmp_path / "run")
        assert not (tmp_path / "run" / name).is_symlink()
    assert (precious.read_text() if precious.exists() else None) == content


def test_a_workdir_that_cannot_be_made_shows_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=r"file is a file, not a folder; give another"):
            loop.train(short_config(), workdir)
    with pytest.raises(InputError, match=r"--workdir /proc/run cannot be "):
        loop.train(short_config(), Path("/proc/run"))
    with pytest.raises(InputError, match=r"--workdir .*: File name too long; give another"):
        loop.train(short_config(), tmp_path / ("x" * 300))


@pytest.mark.parametrize("name", ["checkpoints", "weights.safetensors", "metrics.jsonl", "lock"])
def test_a_file_in_a_folders_place_shows_before_training(name, tmp_path):
    (tmp_path / name).mkdir() if name != "checkpoints" else (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=f"{name} is .*; give another --workdir"):
        loop.train(short_config(), tmp_path)


def test_weights_whose_checkpoints_are_gone_are_not_replaced(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"whose checkpoints are gone.*remove weights"):
        loop.train(short_config(), tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.fixture
def full_disk():
    """A function, after which this process can write to no file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@quick
@pytest.mark.parametrize(
    ("owner", "name", "file"),
    [
        (of_workdir, "_take_lock", "lock"),
        (loop, "claim_workdir", "config.json"),
        (of_workdir, "versions", "versions.json"),
        (loop._Run, "_write", "metrics.jsonl"),
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
            loop.train(config, tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    loop.train(config, tmp_path)
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [2, 4]


@quick
def test_what_cannot_be_written_after_training_is_written_by_the_next_start(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_weights", full)
        with pytest.raises(InputError, match=r"weights.safetensors could .*No space .* make room"):
            loop.train(short_config(), tmp_path)
    loop.train(short_config(), tmp_path)
    assert (tmp_path / "weights.safetensors").exists()


def test_whatever_else_the_system_refuses_is_one_line_of_the_command(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events.tfevents")

    monkeypatch.setattr("aa_flax.train.train", full)
    monkeypatch.setattr("aa_flax.cli.config_and_workdir", lambda: ("config", "run"))
    given = types.SimpleNamespace(resume=None, accept_data_change=False)
    monkeypatch.setattr("absl.flags.FLAGS", given)
    with pytest.raises(InputError, match=r"^events\.tfevents: No space left on device; see to"):
        command._train()
