import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from aa_flax import InputError
from aa_flax.configs import imagenet
from aa_flax.data.batches import evaluation_batches, put_ahead, steps_per_epoch, training_batches
from aa_flax.data.pixels import ImageError

COUNT = 10


class Numbered:
    """Ten images, each with its index as pixels and label; some cannot be read."""

    num_classes = COUNT
    class_names = tuple(map(str, range(COUNT)))

    def __init__(self, *broken):
        self.broken = broken

    def name(self, index):
        return f"{index}.jpg"

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if index in self.broken:
            raise ImageError.of(self.name(index), OSError("broken"))
        ramp = np.linspace(0, 200, 12 * 16 * 3).reshape(12, 16, 3)
        return {"image": Image.fromarray((ramp + index).astype(np.uint8)), "label": index}


def data(**changes):
    data = imagenet.get_config().data
    data.update({"resize_size": 10, "image_size": 10, "crop_size": 8, "num_workers": 2} | changes)
    return data


def train(count, source=None, seed=0, start_step=0, **changes):
    source, given = source or Numbered(), data(**changes)
    return list(islice(training_batches(source, 4, given, seed=seed, start_step=start_step), count))


def evaluate(batch_size=4, source=None, **changes):
    return list(evaluation_batches(source or Numbered(), batch_size, data(**changes), crop=8))


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.mark.parametrize("batch_size", [2, 4, 10, 16])
def test_evaluation_counts_every_image_once_in_order(batch_size):
    batches = evaluate(batch_size)
    assert all(len(batch["label"]) == batch_size for batch in batches)
    seen = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(COUNT))
    for batch in batches:
        assert batch["image"].dtype == np.uint8
        assert batch["image"].shape[1:] == (8, 8, 3)
        np.testing.assert_array_equal(batch["label"], batch["index"])


def test_hosts_divide_an_evaluation_without_overlap(monkeypatch):
    seen = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for host in (0, 1):
        monkeypatch.setattr(jax, "process_index", partial(int, host))
        for batch in evaluate(4):
            assert len(batch["label"]) == 2
            seen += batch["index"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(COUNT))


def test_the_hosts_parts_of_a_training_batch_are_that_of_one_host(monkeypatch):
    whole, parts = [batch["label"].tolist() for batch in train(5)], []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for host in (0, 1):
        monkeypatch.setattr(jax, "process_index", partial(int, host))
        parts.append([batch["label"].tolist() for batch in train(5)])
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_an_epoch_shows_no_image_twice_and_the_next_has_another_order():
    epochs = np.array([batch["label"] for batch in train(4)]).reshape(2, 8)
    assert [len(set(order)) for order in epochs.tolist()] == [8, 8]
    assert epochs[0].tolist() != epochs[1].tolist()


def test_training_follows_from_seed_and_step_alone():
    stream = train(7, seed=3)
    assert_equal(train(2, seed=3, start_step=5), stream[5:])
    assert train(1, seed=4)[0]["label"].tolist() != stream[0]["label"].tolist()


def test_the_stream_is_the_same_for_any_number_of_threads_and_processes():
    expected = train(5, num_workers=1)
    assert_equal(train(5, num_workers=7), expected)
    assert_equal(train(3, worker_type="process", num_workers=2, start_step=2), expected[2:])


def test_the_augmentation_of_an_image_changes_with_the_epoch():
    flips, images = set(), {}
    for batch in train(12):
        flips |= set(batch["flip"].tolist())
        for label, image in zip(batch["label"].tolist(), batch["image"], strict=True):
            images.setdefault(label, []).append(image.tobytes())
    assert flips == {True, False}
    assert all(len(set(shown)) == len(shown) for shown in images.values())


def test_each_augmentation_has_its_batch():
    (batch,) = train(1, augmentation="center_crop")
    expected = evaluate(COUNT)[0]["image"]
    for image, label in zip(batch["image"], batch["label"], strict=True):
        np.testing.assert_array_equal(image, expected[label])
    (batch,) = train(1, augmentation="center_crop", flip=False)
    assert batch.keys() == {"image", "label"}
    batches = train(40, augmentation="random_shift")
    assert batches[0]["image"].shape == (4, 10, 10, 3)
    offsets = np.concatenate([batch["offset"] for batch in batches])
    assert [set(axis) for axis in offsets.T.tolist()] == [{0, 1, 2}, {0, 1, 2}]


def test_an_image_that_cannot_be_read_stops_both():
    for read in (evaluate, partial(train, 3)):
        with pytest.raises(InputError, match=r"^cannot read image 7\.jpg: broken; .*on_error=skip"):
            read(source=Numbered(7))


def test_evaluation_masks_what_it_skips_and_lists_it_at_the_end(capsys):
    batches = evaluate(source=Numbered(3, 9), on_error="skip")
    seen = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    assert seen.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert capsys.readouterr().out == "skipped images that cannot be read, 2:\n  3.jpg\n  9.jpg\n"


def test_processes_stop_and_skip_as_threads_do(capsys):
    process = {"source": Numbered(3, 9), "worker_type": "process", "num_workers": 1}
    with pytest.raises(InputError, match=r"^cannot read image 3\.jpg: broken; .*on_error=skip"):
        evaluate(**process)
    found = evaluate(**process, on_error="skip")
    printed = capsys.readouterr().out
    assert_equal(found, evaluate(source=Numbered(3, 9), on_error="skip"))
    assert capsys.readouterr().out == printed


def test_training_replaces_what_it_skips_by_the_next_and_lists_it_once(capsys):
    whole = np.array([batch["label"] for batch in train(4)])
    expected = np.where(np.isin(whole, [3, 4]), 5, whole)
    batches = train(4, source=Numbered(3, 4), on_error="skip")
    np.testing.assert_array_equal([batch["label"] for batch in batches], expected)
    printed = capsys.readouterr().out
    assert [printed.count(name) for name in ("3.jpg", "4.jpg")] == [1, 1]


def test_skipped_images_are_listed_once_however_often_they_are_read(capsys):
    source = Numbered(3)
    for listed in (1, 0):
        evaluate(source=source, on_error="skip")
        assert capsys.readouterr().out.count("3.jpg") == listed


def test_a_name_that_is_not_utf8_can_be_listed(capsys):
    source = Numbered(3)
    source.name = lambda index: os.fsdecode(b"caf\xe9.jpg")
    evaluate(source=source, on_error="skip")
    assert capsys.readouterr().out.endswith("caf\\udce9.jpg\n")


class Given(Numbered):
    """Ten times the same example."""

    def __init__(self, example):
        self.example = example

    def __getitem__(self, index):
        return self.example


PIXELS = np.zeros((12, 16, 3), np.uint8)


@pytest.mark.parametrize("label", [9, np.int64(9), np.array(9, np.uint8)])
def test_labels_are_integers_of_any_kind(label):
    assert evaluate(source=Given({"image": PIXELS, "label": label}))[0]["label"].tolist() == [9] * 4


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"image": PIXELS, "label": -1}, r"^0\.jpg has label -1, but labels are 0 to 9"),
        ({"image": PIXELS, "label": 10}, r"^0\.jpg has label 10, but labels are 0 to 9"),
        (
            {"image": PIXELS, "label": 1.0},
            r"0\.jpg: a source gives .* integer label, .*label: float",
        ),
        (
            {"image": PIXELS},
            r"a source gives a dict .*, got \{image: an array \(12, 16, 3\) of uint8\}",
        ),
        ((PIXELS, 1), "a source gives a dict of image and an integer label, got tuple"),
        (
            {"image": PIXELS / 255, "label": 1},
            r"uint8 arrays .* got an array \(12, 16, 3\) of float64",
        ),
        ({"image": PIXELS[..., 0], "label": 1}, r"got an array \(12, 16\) of uint8"),
        ({"image": PIXELS.transpose(2, 0, 1), "label": 1}, r"got an array \(3, 12, 16\) of uint8"),
        ({"image": PIXELS[:0], "label": 1}, r"got an array \(0, 16, 3\) of uint8"),
        ({"image": Image.new("L", (9, 9)), "label": 1}, "mode RGB .* got a PIL image in mode L"),
    ],
)
def test_a_malformed_example_is_an_error_that_names_the_image(example, message):
    for on_error in ("stop", "skip"):  # "skip" is for images that cannot be read
        with pytest.raises(InputError, match=message):
            evaluate(source=Given(example), on_error=on_error, num_workers=1)


PROCESSES = """
import os
from itertools import islice
from multiprocessing import active_children
import numpy as np
from aa_flax.config import DataConfig
from aa_flax.data.batches import training_batches

class Greys:
    num_classes, class_names = 1, ("grey",)
    def __len__(self):
        return 256
    def __getitem__(self, index):
        return {"image": np.full((48, 48, 3), index, np.uint8), "label": 0}

if __name__ == "__main__":
    data = DataConfig(worker_type="process", num_workers=1, augmentation="center_crop")
    batches = training_batches(Greys(), 64, data, seed=0)
    kept = list(islice(batches, 2))
    END
"""


def run_until(end, path, stderr=None):
    path.write_text(PROCESSES.replace("END", end))
    python_path = {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    environment, command = {**os.environ, **python_path}, [sys.executable, path]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
    )


def test_processes_leave_nothing_behind_when_a_run_stops_amid_an_epoch(tmp_path):
    done = run_until("raise SystemExit(7)", tmp_path / "stops.py", stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (7, "")


def test_processes_end_when_the_command_that_started_them_is_killed(tmp_path):
    kill = "print(active_children()[0].pid, flush=True); os.kill(os.getpid(), 9)"
    (pid,) = run_until(kill, tmp_path / "killed.py").stdout.split()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    os.kill(int(pid), signal.SIGKILL)
    raise AssertionError("the process that reads outlived its command")


def test_nothing_but_broken_images_is_an_error():
    with pytest.raises(InputError, match=r"20 images in a row cannot be read, from \d\.jpg on"):
        train(1, source=Numbered(*range(COUNT)), on_error="skip")
    with pytest.raises(InputError, match="none of the 10 images can be read"):
        evaluate(source=Numbered(*range(COUNT)), on_error="skip")


def test_batches_are_put_ahead_of_their_use_in_order():
    log = []
    for batch, doubled in put_ahead(iter([1, 2, 3]), lambda x: log.append(f"put {x}") or 2 * x):
        log.append(f"use {batch} {doubled}")
    assert log == ["put 1", "put 2", "use 1 2", "put 3", "use 2 4", "use 3 6"]


def test_an_unknown_word_is_refused_before_reading():
    for read in (evaluate, partial(train, 1)):
        with pytest.raises(InputError, match="'centre_crop'; did you mean center_crop"):
            read(augmentation="centre_crop")


def test_batch_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"batch_size 12 is larger .*10 images"):
        steps_per_epoch(Numbered(), 12)
    with pytest.raises(InputError, match="batch_size 3 does not divide among 2 devices"):
        evaluate(3)
