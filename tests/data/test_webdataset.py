"""WebDataset shards, written by Python's tarfile as WebDataset's writer does."""

import io
import json
import os
import pickle
import subprocess
import tarfile
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from aa_flax import InputError
from aa_flax.data import webdataset
from aa_flax.data.pixels import decode
from aa_flax.data.sources import make_source
from aa_flax.data.webdataset import expand


def write_tar(path, *members):
    """Writes a tar file: `write_tar(path, ("1.jpg", b"..."), ...)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def age(*paths):
    """Dates files a minute back, each a little earlier than the one before."""
    for i, path in enumerate(paths):
        os.utime(path, (time.time() - 60 - i,) * 2)


@pytest.fixture
def shards(tmp_path, odd_files):
    """Writes two shards of two images for training, and one of one for validation."""
    for number, (key, label) in enumerate([("420", 4), ("grey", 0)]):
        write_tar(
            tmp_path / f"train/shard-{number:04}.tar",
            (f"./{key}.jpg", odd_files[f"{key}.jpg"]),
            (f"./{key}.cls", f"{label}\n".encode()),
            ("a/png.JPEG", odd_files["png.JPEG"]),
            ("a/png.json", json.dumps({"label": number}).encode()),
        )
    sample = ("1.webp", odd_files["alpha.webp"]), ("1.cls", b"2"), ("1.txt", b"a caption")
    write_tar(tmp_path / "val/shard-0000.tar", *sample)
    return tmp_path


PATTERN = "wds:{train,val}/shard-*.tar"


def source(path, split="train", name=PATTERN, class_order=""):
    data = {"name": name, "path": str(path), "class_order": class_order}
    return make_source(ConfigDict(data), split)


def test_samples_are_read_in_order_with_the_pixels_of_files(shards, odd_files):
    train = pickle.loads(pickle.dumps(source(shards)))
    assert len(train) == 4
    assert train.name(2) == f"{shards}/train/shard-0001.tar/./grey"
    assert [train[i]["label"] for i in range(4)] == [4, 0, 0, 1]
    for i, name in enumerate(["420.jpg", "png.JPEG", "grey.jpg", "png.JPEG"]):
        np.testing.assert_array_equal(train[i]["image"], decode(odd_files[name], name))
    val = source(shards, "val")
    assert [val[0]["label"]] == [2]
    assert train.class_names == val.class_names == list("01234")


@pytest.mark.parametrize(
    "name", ["wds:{train,val}/shard-{0000..0001}.tar", "wds:train/*.tar", "wds:.", "wds:*/*-0*"]
)
def test_a_pattern_names_the_shards_for_training(shards, name):
    if "val" in name:
        with pytest.raises(InputError, match=r"no shard .*val/shard-0001\.tar"):
            source(shards, name=name)
        name = "wds:{train/shard-{0000..0001},val/shard-0000}.tar"
    assert len(source(shards, name=name)) == 4


def test_braces_are_expanded_as_by_a_shell():
    assert list(expand("{a,b}-{08..10}")) == [f"{x}-{y}" for x in "ab" for y in ("08", "09", "10")]
    assert list(expand("s{9..10}.tar")) == ["s9.tar", "s10.tar"]
    assert set(expand("{train-{0..1},val}.tar")) == {"train-0.tar", "train-1.tar", "val.tar"}


def test_shards_are_in_their_natural_order(tmp_path, odd_files):
    for i in (10, 9, 1):
        sample = (f"{i}.png", odd_files["one_wide.png"]), (f"{i}.cls", b"0")
        write_tar(tmp_path / f"train-{i}.tar", *sample)
    found = source(tmp_path, name="wds:train-*.tar")
    assert [found.name(i).rpartition("/")[2] for i in range(3)] == ["1", "9", "10"]


def test_class_names_are_those_of_a_list_next_to_the_shards(shards, tmp_path):
    (shards / "classes.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    train = source(shards)
    assert train.class_names == ["ant", "bee", "cat", "dog", "elk"]
    (tmp_path / "order.txt").write_text("elk\ncat\nbee\nant\ndog\n")
    train = source(shards, class_order=str(tmp_path / "order.txt"))
    assert [train[i]["label"] for i in range(4)] == [0, 3, 3, 2]
    (shards / "classes.txt").write_text("ant\nbee")
    with pytest.raises(InputError, match=r"0000\.tar/\./420 has label 4, but labels are 0 to 1"):
        source(shards)


def test_a_class_list_that_names_a_class_twice_is_refused(shards):
    (shards / "classes.txt").write_text("crane\nbee\ncrane\ndog\nelk\n")
    with pytest.raises(
        InputError, match=r"classes\.txt names the class crane twice, in lines 1 an"
    ):
        source(shards)


def test_class_lists_of_the_splits_must_agree(shards):
    names = ["ant", "bee", "cat", "dog", "elk"]
    for split in ("train", "val"):
        (shards / split / "classes.txt").write_text("\n".join(names))
    assert source(shards, "val").class_names == names
    (shards / "val/classes.txt").write_text("\n".join(reversed(names)))
    with pytest.raises(InputError, match="classes differently: 0 is ant in one and elk in the oth"):
        source(shards, "val")


def test_the_index_is_kept_until_a_shard_changes(shards, monkeypatch, odd_files):
    files = sorted(shards.rglob("*.tar"))
    age(*files)
    scans, scan = [], webdataset._scan
    monkeypatch.setattr(webdataset, "_scan", lambda shards: scans.append(1) or scan(shards))
    digest = source(shards, "val").digest()
    assert source(shards, "val").digest() == digest
    assert len(scans) == 2  # for either split, both are read to find the classes
    write_tar(files[2], ("1.png", odd_files["rgba.png"]), ("1.cls", b"1"))
    age(*files)
    assert source(shards, "val")[0]["label"] == 1
    assert source(shards, "val").digest() != digest
    write_tar(files[2], ("1.png", odd_files["rgba.png"]), ("1.cls", b"3"))
    os.utime(files[2], (0, 0))  # without a date
    assert source(shards, "val")[0]["label"] == 3
    write_tar(files[2], ("1.png", odd_files["rgba.png"]), ("1.cls", b"4"))
    os.utime(files[2], (0, 0))
    assert source(shards, "val")[0]["label"] == 4


def test_a_damaged_cache_is_replaced(shards, cache_home):
    age(*sorted(shards.rglob("*.tar")))
    digest = source(shards).digest()
    for cache in cache_home.rglob("*.npz"):
        cache.write_bytes(b"PK nonsense")
    assert source(shards).digest() == digest


JPG = ("1.jpg", b"bytes")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([JPG], r"the sample 1 \(\.jpg\) has no label; give it a class number"),
        ([JPG, ("1.cls", b"cat")], "the sample 1 .* has no label"),
        ([JPG, ("1.cls", b"9" * 30)], "the sample 1 .* has no label"),
        ([JPG, ("1.json", b'{"label": "cat"}')], "the sample 1 .* has no label"),
        ([JPG, ("1.json", b"{")], "the sample 1 .* has no label"),
        ([JPG, ("1.json", b"[" * 100_000)], "the sample 1 .* has no label"),
        ([JPG, ("1.cls", b"-1")], r"train\.tar/1 has label -1"),
        ([JPG, ("1.cls", b"9999999")], "has a label 9999999; number its classes from 0 on"),
        ([("1.cls", b"1"), ("1.txt", b"a")], r"the sample 1 has 0 images \(\.cls, \.txt\)"),
        ([JPG, ("1.png", b""), ("1.cls", b"1")], "the sample 1 has 2 images"),
        ([JPG, JPG, ("1.cls", b"1")], r"train\.tar contains 1\.jpg twice"),
        ([JPG, ("1.cls", b"1"), ("2.jpg", b""), ("2.cls", b"1"), JPG], "the sample 1 twice"),
        ([], "has no images"),
    ],
)
def test_malformed_samples_are_refused(tmp_path, members, message):
    write_tar(tmp_path / "train.tar", *members)
    with pytest.raises(InputError, match=message):
        source(tmp_path, name="wds:train.tar")


@pytest.mark.parametrize("padding", [512, 1024, 10240])
def test_tar_files_one_after_the_other_are_one_shard(tmp_path, odd_files, padding):
    path, whole, names = tmp_path / "train.tar", b"", ["420.jpg", "grey.jpg", "rgba.png"]
    for i, name in enumerate(names):
        write_tar(path, (name, odd_files[name]), (f"{name[:-3]}cls", str(i).encode()))
        whole += path.read_bytes().rstrip(b"\0")
        whole += bytes(-len(whole) % 512 + padding)
    path.write_bytes(whole)
    found = source(tmp_path, name="wds:train.tar")
    assert [found[i]["label"] for i in range(len(found))] == [0, 1, 2]
    for i, name in enumerate(names):
        np.testing.assert_array_equal(found[i]["image"], decode(odd_files[name], name))
    path.write_bytes(whole + b"more")
    with pytest.raises(InputError, match=r"cannot read the shard .*train\.tar: .*truncated"):
        source(tmp_path, name="wds:train.tar")


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sparse_files_in_a_shard_are_refused(tmp_path, format):
    with (tmp_path / "1.png").open("wb") as file:
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"bytes")
    (tmp_path / "1.cls").write_text("0")
    tar = ["tar", "--create", "--sparse", f"--format={format}", "--file=train.tar"]
    subprocess.run([*tar, "1.cls", "1.png"], cwd=tmp_path, check=True)
    with pytest.raises(InputError, match=r"train\.tar has a sparse file, 1\.png; write it"):
        source(tmp_path, name="wds:train.tar")


@pytest.mark.parametrize("name", ["wds:*.tar", "wds:."])
def test_a_pipe_among_the_shards_is_named(tmp_path, name):
    os.mkfifo(tmp_path / "train.tar")
    with pytest.raises(InputError, match=r"cannot read the shard .*train\.tar: it is a pipe"):
        source(tmp_path, name=name)


@pytest.mark.parametrize("kept", [0, 700, 1024, 1200, 1536, 2048, 2500, 3072])
def test_a_truncated_shard_is_named(tmp_path, kept):
    path = tmp_path / "train.tar"
    write_tar(path, ("1.jpg", bytes(600)), ("1.cls", b"1"))  # 512 + 1024, 512 + 512, and zeros
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    if kept == 3072:  # one of the two blocks of zeros that end it
        assert len(source(tmp_path, name="wds:train.tar")) == 1
        return
    with pytest.raises(InputError, match=r"cannot read the shard .*train\.tar: .*truncated"):
        source(tmp_path, name="wds:train.tar")


def test_a_shard_with_a_damaged_header_is_named(tmp_path):
    path = tmp_path / "train.tar"
    write_tar(path, ("1.jpg", bytes(600)), ("1.cls", b"1"))
    whole = path.read_bytes()
    path.write_bytes(whole[:1540] + b"\xff\xfe" + whole[1542:])
    with pytest.raises(InputError, match=r"cannot read the shard .*train\.tar"):
        source(tmp_path, name="wds:train.tar")


def test_a_negative_size_in_a_shard_ends_the_reading(tmp_path):
    path = tmp_path / "train.tar"
    write_tar(path, ("1.jpg", b"bytes"), ("1.txt", b"a"), ("1.cls", b"1"))
    header = bytearray(path.read_bytes())
    text = slice(1024, 1536)
    size, checksum = slice(1024 + 124, 1024 + 136), slice(1024 + 148, 1024 + 156)
    header[size] = (-512).to_bytes(12, "big", signed=True)
    header[checksum] = b" " * 8
    header[checksum] = b"%06o\0 " % sum(header[text])
    path.write_bytes(header)
    with pytest.raises(InputError, match=r"train\.tar: 1\.txt has a negative size"):
        source(tmp_path, name="wds:train.tar")


@pytest.mark.parametrize("method", ["gz", "bz2", "xz"])
def test_a_compressed_shard_is_refused(tmp_path, method):
    with tarfile.open(tmp_path / f"train.tar.{method}", f"w:{method}"):
        pass
    with pytest.raises(InputError, match=r"is compressed .*unpack it to a plain"):
        source(tmp_path, name=f"wds:train.tar.{method}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wds:", "'wds:' lacks a pattern of shards"),
        ("wds:nothing-*.tar", "no shards .*nothing-"),
        ("wds:val/*.tar", "has no shards for train; their names have to contain train.*in quotes"),
        ("wds:/nowhere/train/{0..2}.tar", r"no shard /nowhere/train/0\.tar"),
        ("wds:other.tar", r"other\.tar does not say what it is for; its name or a folder's"),
        ("wds:s3://bucket/train-{0..9}.tar", r"config\.data\.name s3://.* is an address"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(shards, name, message):
    write_tar(shards / "other.tar")
    with pytest.raises(InputError, match=message):
        source(shards, name=name)
