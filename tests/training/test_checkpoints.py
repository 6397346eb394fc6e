import json
import resource
import shutil

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from aa_flax import InputError
from aa_flax.sharding import data_mesh
from aa_flax.training.checkpoints import Checkpoints
from aa_flax.training.state import init_state
from tests.training.tiny import TinyNet

# Orbax leaves reads and writes pending when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def state_at(step, devices=2):
    """A state that says which step it is of, of about 160 kB."""
    mesh = data_mesh(jax.devices()[:devices])
    state = init_state(TinyNet(num_classes=5000, rngs=nnx.Rngs(step)), OPTIMIZER, mesh)
    return state._replace(step=state.step + step)


def save(checkpoints, step, *, epoch=0, top1=None):
    checkpoints.save(state_at(step), epoch=epoch, top1=top1, num_classes=10, config={"a": 1})


def assert_equal(state, expected):
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def damage(folder, step, kind):
    """Deletes or cuts the largest file of a checkpoint, or changes a bit of it, or empties all."""
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
        told = capsys.readouterr().out
        assert "the checkpoint of step 2 is damaged" in told
        assert "going back to the one before" in told
        save(checkpoints, 2)  # reached again
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore_latest(state_at(0))[0], state_at(2))
    assert (tmp_path / "2.damaged").is_dir()


def test_what_a_killed_run_left_half_written_is_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        save(checkpoints, 1)
    half = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", half)
    with Checkpoints(tmp_path) as checkpoints:  # a reader: it may be in the making
        assert checkpoints.latest.step == 1
    assert half.exists()
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        assert checkpoints.latest.step == 1
    assert not half.exists()


def test_if_all_are_damaged_that_is_said_and_nothing_is_touched(tmp_path):
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
        message = r"of another net or for other classes \(2 arrays.*\(5000,\) there, \(7,\) here"
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
    content["custom_metadata"]["mood"] = "new"
    description.write_text(json.dumps(content))
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        assert_equal(checkpoints.restore_latest(state_at(0))[0], state_at(2))
    del content["custom_metadata"]["checksums"]
    description.write_text(json.dumps(content))
    with (
        Checkpoints(tmp_path, of_run=True) as checkpoints,
        pytest.raises(InputError, match=r"step 2 .* written by a newer version of aa_flax"),
    ):
        checkpoints.restore_latest(state_at(0))
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
        with pytest.raises(InputError, match=r"step 2 could not be written.* step 1 is intact"):
            write_two()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path, of_run=True) as checkpoints:
        assert_equal(checkpoints.restore_latest(state_at(0))[0], state_at(1))
