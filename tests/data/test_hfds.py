"""Hugging Face data sets, in parquet files and folders that `datasets` and pyarrow write."""

import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from ml_collections import ConfigDict

from aa_flax import InputError
from aa_flax.data.pixels import decode
from aa_flax.data.sources import make_source

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    datasets = pytest.importorskip("datasets", reason="the hf extra is not installed")

FILES = ("420.jpg", "cmyk.jpg", "palette.png", "sixteen_bit.png", "alpha.webp")
LABEL = datasets.ClassLabel(names=["tabby", "goldfish", "newt"])


def table(odd_files, labels, label=LABEL, count=5):
    images = [{"bytes": odd_files[name], "path": name} for name in FILES[:count]]
    features = datasets.Features({"picture": datasets.Image(), "label": label})
    return datasets.Dataset.from_dict({"picture": images, "label": labels}, features=features)


def source(path, split, tmp_path, parts="", class_order=""):
    data = {"name": f"hfds:{path}{parts}", "path": str(tmp_path / "c"), "class_order": class_order}
    return make_source(ConfigDict(data), split)


@pytest.fixture(params=["parquet", "disk"])
def folder(request, tmp_path, odd_files):
    """Writes a training set of five images and a validation set of two, as parquet or as saved."""
    parts = {
        "train": table(odd_files, [2, 0, 1, 1, 0]),
        "validation": table(odd_files, [1, 2], count=2),
    }
    path = tmp_path / "set"
    if request.param == "disk":
        datasets.DatasetDict(parts).save_to_disk(str(path))
    else:
        path.mkdir()
        for name, part in parts.items():
            part.to_parquet(str(path / f"{name}-00000-of-00001.parquet"))
    return path


def test_a_folder_has_the_pixels_of_its_files(folder, tmp_path, odd_files):
    train = pickle.loads(pickle.dumps(source(folder, "train", tmp_path)))
    assert (len(train), train.num_classes) == (5, 3)
    assert list(train.class_names) == ["tabby", "goldfish", "newt"]
    assert [train[i]["label"] for i in range(5)] == [2, 0, 1, 1, 0]
    for i, name in enumerate(FILES):
        np.testing.assert_array_equal(train[i]["image"], decode(odd_files[name], name))
    assert train.name(3) == f"{folder}/train[3]"
    val = source(folder, "val", tmp_path)
    assert [val[i]["label"] for i in range(2)] == [1, 2]


def test_a_part_of_the_training_images_may_be_for_validation(folder, tmp_path):
    parts = [source(folder, s, tmp_path, "#train[:60%],train[60%:]") for s in ("train", "val")]
    assert [len(part) for part in parts] == [3, 2]
    assert [parts[1][i]["label"] for i in range(2)] == [1, 0]
    assert parts[1].name(0) == f"{folder}/train[3]"
    digests = {part.digest() for part in parts} | {source(folder, "train", tmp_path).digest()}
    assert len(digests) == 3


@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_splits_that_number_their_classes_differently_are_refused(tmp_path, odd_files, kind):
    other = datasets.ClassLabel(names=["newt", "tabby", "goldfish"])
    parts = {"train": table(odd_files, [0, 1], count=2)}
    parts["validation"] = table(odd_files, [1, 2], other, count=2)
    path = tmp_path / "set"
    if kind == "disk":
        datasets.DatasetDict(parts).save_to_disk(str(path))
    else:  # `datasets` uses the names in the first one for all
        path.mkdir()
        for name, part in parts.items():
            part.to_parquet(str(path / f"{name}.parquet"))
    differently = "number their classes differently: 0 is tabby in one and newt in the other"
    reverse = differently.replace("tabby", "-").replace("newt", "tabby").replace("-", "newt")
    for split, message in (("train", differently), ("val", f"({differently}|{reverse})")):
        with pytest.raises(InputError, match=message):
            source(path, split, tmp_path)
    if kind == "disk":  # labels in the order of the names
        (tmp_path / "order.txt").write_text("goldfish\nnewt\ntabby\n")
        val = source(path, "val", tmp_path, class_order=str(tmp_path / "order.txt"))
        assert [val[i]["label"] for i in range(2)] == [2, 0]


def test_a_damaged_parquet_file_is_named(folder, tmp_path):
    for path in folder.glob("validation*.parquet"):
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(InputError, match=r"validation-.*parquet is not a whole parquet file"):
            source(folder, "train", tmp_path)


def saved(tmp_path, odd_files, labels, label):
    path = tmp_path / "saved"
    table(odd_files, labels, label, count=len(labels)).save_to_disk(str(path))
    return path


def test_integers_are_numbered_and_texts_sorted(tmp_path, odd_files):
    path = saved(tmp_path, odd_files, [3, 0, 1], datasets.Value("int64"))
    numbered = source(path, "train", tmp_path)
    assert numbered.class_names == list("0123")
    assert [numbered[i]["label"] for i in range(3)] == [3, 0, 1]
    path = saved(tmp_path / "texts", odd_files, ["newt", "ant", "newt"], datasets.Value("string"))
    sorted_ = source(path, "train", tmp_path)
    assert sorted_.class_names == ["ant", "newt"]
    assert [sorted_[i]["label"] for i in range(3)] == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        ([0, -1, 1], LABEL, r"saved/train\[1\] has label -1, but labels are 0 to 2"),
        ([0, -1, 1], datasets.Value("int32"), r"saved/train\[1\] has label -1"),
        ([0, None, 1], LABEL, r"saved/train\[1\] has no label \(column label\)"),
        ([0.5, 1.5], datasets.Value("float32"), "column label of .* contains float, not integers"),
    ],
)
def test_labels_without_a_class_are_refused(tmp_path, odd_files, labels, label, message):
    path = saved(tmp_path, odd_files, labels, label)
    with pytest.raises(InputError, match=message):
        source(path, "train", tmp_path)


def test_integers_in_one_split_and_texts_in_another_are_refused(tmp_path, odd_files):
    parts = {"train": table(odd_files, [0, 1], datasets.Value("int64"), count=2)}
    parts["validation"] = table(odd_files, ["0", "1"], datasets.Value("string"), count=2)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match="has integers in train and texts in other splits"):
        source(tmp_path / "set", "train", tmp_path)


def test_parquet_files_of_bytes_and_numbers_are_read(tmp_path, odd_files):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "plain").mkdir()
    columns = {"image": [odd_files["420.jpg"]], "label": [0], "width": [333]}
    parquet.write_table(pa.table(columns), tmp_path / "plain/train.parquet")
    found = source(tmp_path / "plain", "train", tmp_path)
    np.testing.assert_array_equal(found[0]["image"], decode(odd_files["420.jpg"], ""))


def test_sets_that_do_not_fit_are_refused(tmp_path, odd_files):
    path = saved(tmp_path, odd_files, [0, 1], LABEL)
    with pytest.raises(InputError, match=r"no split validation or .*; it has train; say what is"):
        source(path, "val", tmp_path)
    with pytest.raises(InputError, match=r"no folder .*nowhere \(config\.data\.name=hfds:"):
        source(tmp_path / "nowhere", "train", tmp_path)
    with pytest.raises(InputError, match=r"config\.data\.name hf://datasets/x is an address"):
        source("hf://datasets/x", "train", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"datasets cannot load .*empty: "):
        source(tmp_path / "empty", "train", tmp_path)
    other = datasets.Dataset.from_dict({"a": [1], "b": [2]})
    other.save_to_disk(str(tmp_path / "other"))
    with pytest.raises(InputError, match="has 0 columns of images among a, b; name the one to"):
        source(tmp_path / "other", "train", tmp_path)


def test_without_a_network_a_name_gets_one_line(tmp_path):
    code = (
        "from aa_flax.data.hfds import HFDS, InputError\n"
        "try: HFDS('somebody/something', '', 'train')\n"
        "except InputError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith("datasets cannot load somebody/something: ")


def test_without_datasets_its_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'aa_flax\[hf\]'"):
        source("name", "train", tmp_path)
