import gc
import json
import os
import resource
import shutil
import zlib
from functools import cache

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from aa_flax import InputError
from aa_flax.files import is_out_of_reach
from aa_flax.runtime import data_mesh
from aa_flax.training.step import init_state
from aa_flax.weights.checkpoints import Checkpoints
from tests.training.tiny import TinyNet

OPTIMIZER = optax.sgd(0.1, momentum=0.9)


@cache
def initial(devices):
    mesh = data_mesh(jax.devices()[:devices])
    return init_state(TinyNet(num_classes=5000, rngs=nnx.Rngs(0)), OPTIMIZER, mesh)


def state_at(step, devices=2):
    """Returns a state of about 160 kB that depends on the step."""
    state = initial(devices)
    params = jax.tree.map(lambda x: x + step, state.params)
    return state._replace(step=state.step + step, params=params)


def save(checkpoints, step, *, epoch=0, top1=None):
    checkpoints.save(state_at(step), epoch=epoch, top1=top1, num_classes=10, config={"a": 1})


def assert_equal(state, expected):
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def damage(folder, step, kind):
    """Deletes or truncates the largest file of a checkpoint, changes a bit, or empties all."""
    if kind == "description":
        (folder / str(step) / "_CHECKPOINT_METADATA").write_text("{")
        return
    files = [path for path in (folder / str(step)).rglob("*") if path.is_file()]
    if kind == "empty":
        for path in files:
            path.write_bytes(b"")
        return
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if kind == "deleted":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def test_two_latest_the_best_and_every_nth_epoch_are_kept(tmp_path):
    top1 = {1: 10.0, 2: 60.0, 3: 20.0, 4: 60.0, 5: 5.0, 6: 7.0}
    with Checkpoints(tmp_path, keep_every=3, of_run=True) as checkpoints:
        for epoch, value in top1.items():
            save(checkpoints, 10 * epoch, epoch=epoch, top1=value)
            save(checkpoints, 10 * epoch + 5, epoch=epoch)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [20, 30, 60, 65]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest.step == 65
        assert checkpoints.latest.top1 is None
        assert checkpoints.best == checkpoints.find(None) == checkpoints.find(20)
        assert checkpoints.best.epoch == 2
        assert checkpoints.best.config == {"a": 1}
        with pytest.raises(InputError, match=r"no checkpoint of step 7 .*there are 20, 30, 60, 65"):
            checkpoints.find(7)


def test_a_state_comes_back_bit_for_bit_on_any_number_of_devices(tmp_path):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 3)
        for devices in (1, 2):
            like = state_at(0, devices)
            found, record = checkpoints.restore_latest(like)
            assert record.step == 3
            assert_equal(found, state_at(3))
            assert jax.tree.leaves(found)[0].sharding == jax.tree.leaves(like)[0].sharding


@pytest.mark.parametrize(
    "kind",
    [
        "deleted",
        pytest.param("cut", marks=pytest.mark.slow),
        pytest.param("bit", marks=pytest.mark.slow),
        "description",
        "empty",
    ],
)
def test_a_damaged_latest_checkpoint_gives_way_to_the_one_before(kind, tmp_path, capsys):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    damage(tmp_path, 2, kind)
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        found, record = checkpoints.restore_latest(state_at(0))
        assert record.step == 1
        assert_equal(found, state_at(1))
        output = capsys.readouterr().out
        assert "the checkpoint of step 2 is damaged" in output
        assert "going back to the one before" in output
        save(checkpoints, 2)  # the step is reached again
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore_latest(state_at(0))[0], state_at(2))
    assert (tmp_path / "2.damaged").is_dir()
    gc.collect()  # pytest reports here an unraised error of the failed load


@pytest.mark.parametrize(
    ("old", "new"), [(b"12.5", b"92.5"), (b'"epoch": 1', b'"epoch": 3'), (b'"top1"', b'"tOp1"')]
)
def test_a_bit_of_a_description_is_damage_and_never_another_best(old, new, tmp_path, capsys):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1, epoch=1, top1=12.5)
        save(checkpoints, 2, epoch=2, top1=55.25)
    description = tmp_path / "1" / "_CHECKPOINT_METADATA"
    content = description.read_bytes().replace(b'": ', b'":').replace(b'":', b'": ')
    assert old in content
    description.write_bytes(content.replace(old, new))
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        assert checkpoints.find(None).step == 2
        assert "the checkpoint of step 1 is damaged" in capsys.readouterr().out
        with pytest.raises(InputError, match=r"of step 1 in .* is damaged: in its description"):
            checkpoints.find(1)
        save(checkpoints, 3, epoch=3)
        save(checkpoints, 4, epoch=4)
    assert (tmp_path / "1").is_dir()  # its arrays may be complete


def refused(*_):
    raise PermissionError(13, "Permission denied")


def as_in_tensorstore(code, text):
    def load(*_):
        raise ValueError(f"{text}: Error reading 'fc.bias/c/0' [os_error_code='{code}']")

    return load


def no_memory(*_):
    raise MemoryError


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (refused, r"Permission denied"),
        (no_memory, "MemoryError"),
        (as_in_tensorstore(5, "UNKNOWN"), "UNKNOWN: Error reading"),
        (as_in_tensorstore(24, "RESOURCE_EXHAUSTED"), "RESOURCE_EXHAUSTED: Error reading"),
    ],
)
def test_a_file_out_of_reach_is_an_error_and_no_damage(load, reason, tmp_path, monkeypatch):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    message = rf"step 2 in {tmp_path} cannot be read now \(.*{reason}"
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._checkpointer, "load_checkpointables", load)
            with pytest.raises(InputError, match=message):
                checkpoints.restore_latest(state_at(0))
            with pytest.raises(InputError, match=message):
                checkpoints.restore_model(2, TinyNet(num_classes=5000, rngs=nnx.Rngs(0)))
        assert checkpoints.restore_latest(state_at(0))[1].step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_missing_file_is_damage_also_in_tensorstores_words():
    with pytest.raises(ValueError, match="os_error_code") as caught:
        as_in_tensorstore(2, "NOT_FOUND")()
    assert not is_out_of_reach(caught.value)


def test_a_description_without_permission_is_an_error_and_no_damage(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
    monkeypatch.setattr("pathlib.Path.read_bytes", refused)  # the user of a test may be root
    with pytest.raises(InputError, match=r"step 1 in .* cannot be read now \(PermissionError"):
        Checkpoints(tmp_path, of_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_tensorstores_own_words_for_a_missing_permission_are_understood(tmp_path):
    like = state_at(0)
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        arrays = max((tmp_path / "1").rglob("d/*"), key=lambda path: path.stat().st_size)
        arrays.chmod(0)
        parents = [tmp_path, *tmp_path.parents[:3]]
        modes = [path.stat().st_mode for path in parents]
        for path in parents:
            path.chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"step 1 in .* cannot be read now .*PERMISSION_D"):
                checkpoints.restore_latest(like)
        finally:
            os.seteuid(0)
            for path, mode in zip(parents, modes, strict=True):
                path.chmod(mode)


def test_a_half_written_checkpoint_of_a_killed_run_is_ignored(tmp_path):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
    half = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", half)
    with Checkpoints(tmp_path) as checkpoints:  # a reader: another process may be writing it
        assert checkpoints.latest.step == 1
    assert half.exists()
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        assert checkpoints.latest.step == 1
        save(checkpoints, 3)  # waits for Orbax's thread that removes it
    assert not half.exists()


def test_if_all_are_damaged_that_is_an_error_and_nothing_is_changed(tmp_path):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    damage(tmp_path, 1, "cut")
    damage(tmp_path, 2, "empty")
    for _ in range(2):
        with Checkpoints(tmp_path, of_run=True) as checkpoints:
            with pytest.raises(InputError, match=r"checkpoint of step 1 .*is damaged"):
                checkpoints.restore_model(1, TinyNet(num_classes=5000, rngs=nnx.Rngs(0)))
            with pytest.raises(InputError, match=r"every checkpoint .* damaged \(step 2.*; step 1"):
                checkpoints.restore_latest(state_at(0))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_damaged_checkpoints_that_were_set_aside_are_not_forgotten(tmp_path):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
    (tmp_path / "1").rename(tmp_path / "1.damaged")
    with (
        Checkpoints(tmp_path, of_run=True) as checkpoints,
        pytest.raises(InputError, match=r"every checkpoint .* damaged \(1\.damaged\)"),
    ):
        checkpoints.restore_latest(state_at(0))


def test_a_step_damaged_again_and_again_finds_a_free_name(tmp_path):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
    for _ in range(3):
        with Checkpoints(tmp_path, of_run=True) as checkpoints:
            save(checkpoints, 2)
        damage(tmp_path, 2, "empty")
        with Checkpoints(tmp_path, of_run=True) as checkpoints:
            assert checkpoints.restore_latest(state_at(0))[1].step == 1
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["1", "2.damaged", "2.damaged.2", "2.damaged.3"]


def test_a_shape_that_does_not_fit_is_not_damage(tmp_path):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
        other = TinyNet(num_classes=7, rngs=nnx.Rngs(0))
        message = r"of another model or for other classes \(2 arrays.*\(5000,\) there, \(7,\) here"
        with pytest.raises(InputError, match=message):
            checkpoints.restore_latest(init_state(other, OPTIMIZER, data_mesh()))
        with pytest.raises(InputError, match=message):
            checkpoints.restore_model(1, other)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_checkpoint_of_a_newer_version_is_read_or_refused_but_never_renamed(tmp_path):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    description = tmp_path / "2" / "_CHECKPOINT_METADATA"
    content = json.loads(description.read_text())
    fields = content["custom_metadata"]
    fields["mood"] = "new"
    del fields["checksum"]
    fields["checksum"] = zlib.crc32(json.dumps(fields, sort_keys=True).encode())
    description.write_text(json.dumps(content))
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        assert_equal(checkpoints.restore_latest(state_at(0))[0], state_at(2))
    del fields["checksums"], fields["checksum"]
    description.write_text(json.dumps(content))
    newer = pytest.raises(InputError, match=r"step 2 .* written by a newer version of aa_flax")
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        with newer:
            checkpoints.restore_latest(state_at(0))
        with newer:
            checkpoints.find(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_failed_write_is_one_error_and_leaves_the_checkpoint_before(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_two():
        with Checkpoints(tmp_path, of_run=True) as checkpoints:
            save(checkpoints, 1)
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes
            save(checkpoints, 2)

    try:
        with pytest.raises(InputError, match=r"step 2 .* could not be written.* 1 is intact"):
            write_two()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        assert_equal(checkpoints.restore_latest(state_at(0))[0], state_at(1))
