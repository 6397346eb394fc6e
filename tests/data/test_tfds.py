"""A data set that TFDS prepares here, without TensorFlow, from encoded images."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from aa_flax import InputError
from aa_flax.config import DataConfig
from aa_flax.data.batches import evaluation_example
from aa_flax.data.classes import imagenet_classes
from aa_flax.data.pixels import ImageError
from aa_flax.data.sources import make_source

pytest.importorskip("tensorflow_datasets", reason="the tfds extra is not installed")

PREPARE = """
import sys
from pathlib import Path
import tensorflow_datasets as tfds

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["ant", "bee"])
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        labelled = {"train": self._examples(3), "test": self._examples(2)}
        return labelled | {"unlabelled": self._examples(2, labelled=False)}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, count, labelled=True):
        for i in range(count):
            label = i % 2 if labelled else -1
            yield i, {"image": str(Path(sys.argv[1], f"{i}.png")), "label": label}

Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


_buffer = io.BytesIO()
Image.new("RGB", (1, 1)).save(_buffer, "PNG")
PNG = _buffer.getvalue()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for i in range(3):
        Image.new("RGB", (9, 8), (i, 10 * i, 200)).save(folder / f"{i}.png")
    subprocess.run([sys.executable, "-c", PREPARE, folder], check=True, capture_output=True)
    return str(folder)


def source(data_dir, split, name="tfds:tiny", class_order=""):
    data = {"name": name, "path": data_dir, "class_order": class_order}
    return make_source(ConfigDict(data), split)


def test_a_prepared_set_is_read_without_tensorflow(data_dir):
    train = source(data_dir, "train")
    assert (len(train), train.num_classes, list(train.class_names)) == (3, 2, ["ant", "bee"])
    examples = [train[i] for i in range(3)]
    found = sorted((np.asarray(e["image"])[0, 0].tolist(), e["label"]) for e in examples)
    assert found == [([0, 0, 200], 0), ([1, 10, 200], 1), ([2, 20, 200], 0)]
    assert "tensorflow" not in sys.modules


def test_validation_is_the_test_split_where_there_is_no_other(data_dir):
    val = source(data_dir, "val", "tfds:tiny:1.0.0")
    assert len(val) == 2
    assert val.name(1) == "tiny:1.0.0/test[1]"


def test_a_class_order_places_its_classes(data_dir, tmp_path):
    (tmp_path / "order.txt").write_text("bee\ncat\nant\n")
    val = source(data_dir, "val", class_order=str(tmp_path / "order.txt"))
    assert val.num_classes == 3
    assert {val[i]["label"] for i in range(2)} == {0, 2}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds:tini", r"TFDS has no data set 'tini', nor is it in "),
        ("tfds:cifar10", r"cifar10 is not prepared in .*tfds build cifar10 --file_format=array_re"),
        ("tfds:", r"'tfds:' lacks the name of a TFDS data set"),
        ("tfds:tiny#dev,train", r"tiny has no split 'dev'; it has .*train"),
    ],
)
def test_a_missing_set_is_named(data_dir, name, message):
    with pytest.raises(InputError, match=message):
        source(data_dir, "train", name)


def test_a_part_of_the_training_images_is_reserved_for_validation(data_dir):
    name = "tfds:tiny#train[:2],train[2:]"
    whole = source(data_dir, "train")
    train, val = (source(data_dir, split, name) for split in ("train", "val"))
    assert (len(train), len(val)) == (2, 1)
    assert val.name(0) == "tiny/train[2]"
    np.testing.assert_array_equal(val[0]["image"], whole[2]["image"])
    assert len({whole.digest(), train.digest(), val.digest()}) == 3
    assert whole.digest() == source(data_dir, "train", "tfds:tiny:1.0.0").digest()


def test_an_image_without_a_label_is_an_error(data_dir):
    val = source(data_dir, "val", "tfds:tiny#train,unlabelled")
    with pytest.raises(
        InputError, match=r"^tiny/unlabelled\[1\] has label -1, but labels are 0 to 1"
    ):
        val[1]


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"", None])
def test_a_damaged_file_of_images_is_named_and_can_be_skipped(data_dir, tmp_path, damage):
    shutil.copytree(Path(data_dir, "tiny"), tmp_path / "tiny")
    (file,) = tmp_path.rglob("*train.array_record*")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    train = source(str(tmp_path), "train")
    with pytest.raises(
        ImageError, match=rf"^cannot read image tiny/train\[1\]: its record in {file} is miss"
    ):
        train[1]
    skipping = DataConfig(on_error="skip")
    assert not evaluation_example(train, skipping, 224, 1)["mask"]
    assert len(source(str(tmp_path), "val")[0]) == 2


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff{}"])
def test_damaged_metadata_give_an_error_of_one_line(data_dir, tmp_path, name, content):
    shutil.copytree(Path(data_dir, "tiny"), tmp_path / "tiny")
    (file,) = tmp_path.rglob(name)
    file.write_bytes(content)
    message = (
        rf"^TFDS cannot read tiny in {tmp_path}: .*; prepare it again: tfds build tiny --file.*$"
    )
    with pytest.raises(InputError, match=message):
        source(str(tmp_path), "train")


class Builder:
    """A mock TFDS builder."""

    data_path = "here"

    def __init__(self, splits=("train",), features=("image", "label"), names=("ant",)):
        label = type("ClassLabel", (), {"names": list(names)})
        split = type("Split", (), {"num_examples": 2})
        info = {"splits": dict.fromkeys(splits, split), "full_name": "tiny/1.0.0"}
        self.info = type("Info", (), info | {"features": dict.fromkeys(features, label)})

    def as_data_source(self, *_, **__):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (Builder(features=("audio", "label")), "tiny has no features image and label.*has audio"),
        (Builder(splits=("train", "dev")), "no split validation or .*; it has train, dev"),
        (Builder(splits=("test",)), "in here is prepared in a format without random access"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(monkeypatch, builder, message):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    with pytest.raises(InputError, match=message):
        source("", "val")


def test_imagenets_classes_have_the_published_order_whatever_tfds_has(monkeypatch):
    import tensorflow_datasets as tfds

    builder = Builder(splits=("test",), names=reversed(imagenet_classes()))
    builder.as_data_source = lambda *_, **__: [{"image": PNG, "label": i} for i in (999, 0)]
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    assert [source("", "val")[i]["label"] for i in range(2)] == [0, 999]


def test_without_tfds_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'aa_flax\[tfds\]'"):
        source("", "train")
