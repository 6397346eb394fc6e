import os
import shutil
import socket
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from aa_flax import InputError
from aa_flax.data import folder
from aa_flax.data.classes import classes_in_order, imagenet_classes
from aa_flax.data.folder import ImageFolder, load_index
from aa_flax.data.pixels import ImageError
from aa_flax.data.sources import make_source
from benchmarks.reference import torchvision

NAMES = (
    "train/b/10.png",
    "train/b/9.JPEG",
    "train/b/Z.webp",
    "train/a-c/1.jpg",
    "train/a/b/2.png",
    "train/a/b/c/2.png",
    "train/a/b-c/3.bmp",
    "train/a/é.png",
    "train/a/.hidden.png",
    "train/C/1.TIFF",
    "train/9/1.png",
    "train/10/1.png",
)


def age(root):
    """Makes folders look unchanged for a minute."""
    for path, *_ in os.walk(root):
        os.utime(path, (time.time() - 60,) * 2)


def paths(source):
    return [source.name(i) for i in range(len(source))]


def test_images_and_classes_are_in_torchvisions_order(make_tree):
    root = make_tree(*NAMES)
    (root / "train/a/notes.txt").write_text("not an image")
    (root / "train/labels.csv").write_text("not a class")
    (root / "train/linked").symlink_to(root / "train/a/b")
    expected = torchvision.datasets.ImageFolder(root / "train")
    source = ImageFolder(str(root), "train")
    assert source.class_names == expected.classes
    assert paths(source) == [path for path, _ in expected.samples]
    for i, (image, label) in enumerate(expected):
        assert source[i]["label"] == label
        np.testing.assert_array_equal(source[i]["image"], image)


def test_the_index_is_read_from_its_cache_until_a_folder_changes(make_tree, monkeypatch):
    root = make_tree("a/1.png", "a/deep/2.png", "b/3.png")
    age(root)
    scans = []
    scan = folder.scan
    monkeypatch.setattr(folder, "scan", lambda root: scans.append(root) or scan(root))
    first, again = load_index(root), load_index(root)
    assert len(scans) == 1
    assert [first.path(i) for i in range(3)] == [again.path(i) for i in range(3)]
    shutil.copy(root / "b/3.png", root / "a/deep/4.png")
    assert len(load_index(root).ends) == 4
    assert len(load_index(root).ends) == 4
    assert len(scans) == 3  # changed just now, so not in the cache yet
    age(root)
    assert len(load_index(root).ends) == 4
    (root / "a/1.png").unlink()
    assert len(load_index(root).ends) == 3


@pytest.mark.parametrize("date", [0, 1_000_000_000])
def test_folders_without_dates_are_listed_again(make_tree, date):
    root = make_tree("val/a/1.png", "val/b/1.png")

    def undated():
        for path, *_ in os.walk(root):
            os.utime(path, (date, date))

    undated()
    assert len(ImageFolder(str(root), "val")) == 2
    shutil.copy(root / "val/a/1.png", root / "val/a/2.png")
    undated()
    assert len(ImageFolder(str(root), "val")) == 3


def test_a_link_that_loops_counts_nothing_twice(make_tree):
    root = make_tree("val/a/1.png", "val/a/b/2.png", "val/a/c/3.png", "val/d/4.png")
    (root / "val/a/up").symlink_to(root / "val/a")
    (root / "val/a/b/across").symlink_to(root / "val/a/c")
    (root / "val/a/c/across").symlink_to(root / "val/a/b")
    (root / "val/d/top").symlink_to(root / "val")
    found = [os.path.realpath(path) for path in paths(ImageFolder(str(root), "val", "sorted"))]
    expected = ("val/a/1.png", "val/a/b/2.png", "val/a/c/3.png", "val/d/4.png")
    assert found == [str(root / path) for path in expected]


def test_names_that_are_not_utf8_are_supported(make_tree):
    root = make_tree("val/a/1.png")
    odd = os.path.join(os.fsencode(root), b"val/caf\xe9")
    os.mkdir(odd)
    os.rename(root / "val/a/1.png", os.path.join(odd, b"\xff.png"))
    (root / "val/a").rmdir()
    for _ in range(2):  # listed, and from the cache
        age(root)
        source = ImageFolder(str(root), "val")
        assert source[0]["label"] == 0
        assert os.fsencode(source.name(0)) == os.path.join(odd, b"\xff.png")
        assert len(source.digest()) == 32


def test_the_digest_depends_on_names_and_labels_alone(make_tree, tmp_path_factory):
    root = make_tree("val/a/1.png", "val/b/2.png")
    first = ImageFolder(str(root), "val").digest()
    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    shutil.copytree(root, copy)
    age(copy)
    assert ImageFolder(str(copy), "val").digest() == first
    (copy / "val/a/1.png").rename(copy / "val/b/1.png")
    shutil.copy(copy / "val/b/1.png", copy / "val/a/3.png")
    assert ImageFolder(str(copy), "val").digest() != first
    order = copy / "order.txt"
    order.write_text("b\na")
    assert ImageFolder(str(root), "val", str(order)).digest() != first


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_class_list_may_be_in_any_encoding_of_an_editor(make_tree, encoding, end):
    root = make_tree("val/ant/1.png", "val/caf\u00e9/2.png")
    (root / "order.txt").write_bytes(end.join(["café", "dog", "ant", ""]).encode(encoding))
    source = ImageFolder(str(root), "val", str(root / "order.txt"))
    assert source.class_names == ["café", "dog", "ant"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_a_class_list_in_another_encoding_is_refused(make_tree, encoding):
    root = make_tree("val/ant/1.png")
    (root / "order.txt").write_bytes("ant\ncafé".encode(encoding))
    with pytest.raises(InputError, match=r"order\.txt is not .*in UTF-8.*; save it as UTF-8"):
        ImageFolder(str(root), "val", str(root / "order.txt"))


def test_addresses_are_refused_and_the_home_folder_is_expanded(make_tree, monkeypatch):
    root = make_tree("val/a/1.png")
    monkeypatch.setenv("HOME", str(root))
    assert len(ImageFolder("~", "val")) == 1
    with pytest.raises(
        InputError, match=r"config\.data\.path gs://bucket/data is an address \(gs\)"
    ):
        ImageFolder("gs://bucket/data", "val")


def test_a_damaged_cache_is_replaced(make_tree, cache_home):
    root = make_tree("a/1.png")
    age(root)
    load_index(root)
    (cache,) = cache_home.rglob("*.npz")
    whole = cache.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        cache.write_bytes(damaged)
        assert load_index(root).path(0) == "a/1.png"
        assert cache.read_bytes() == whole


def test_a_cache_folder_that_cannot_be_written_is_ignored(make_tree, monkeypatch):
    root = make_tree("a/1.png")
    age(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "a/1.png"))
    assert load_index(root).path(0) == "a/1.png"


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["val/a/1.png"], "train", r"no folder train/ in .*has to contain train/, val/"),
        (["val/1.png"], "val", r"val has no class folders.*aa_flax\.data\.imagenet_val"),
        (["val/a/1.png", "train/b/1.png"], "val", "different classes: a, b only in one"),
        (
            ["val/a/1.png", "val/b/1.gif"],
            "val",
            r"no images in 1 class folders .*val: b; .*\.jpg",
        ),
        (["val/n01440764/1.png"], "val", r"999 classes \(n01443537, .*\) missing, 0 classes unk"),
        (["val/n00000001/1.png"], "val", r"1000 classes .* missing, 1 classes \(n00000001\) unk"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused(make_tree, names, split, message):
    with pytest.raises(InputError, match=message):
        ImageFolder(str(make_tree(*names)), split)


@pytest.mark.parametrize("class_order", ["", "sorted"])
def test_class_folders_of_either_split_must_be_the_same(make_tree, class_order):
    root = make_tree("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png")
    for split in ("train", "val"):
        with pytest.raises(InputError, match="different classes: b, c only in one of them; make"):
            ImageFolder(str(root), split, class_order)
    (root / "order.txt").write_text("a\nb\nc\n")
    val = ImageFolder(str(root), "val", str(root / "order.txt"))
    assert [val[i]["label"] for i in range(2)] == [0, 2]


def test_a_missing_folder_is_refused(tmp_path):
    data = ConfigDict({"name": "folder", "path": "", "class_order": ""})
    with pytest.raises(InputError, match=r"give --config\.data\.path"):
        make_source(data, "train")
    data.path = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no folder .*nowhere \(config\.data\.path\)"):
        make_source(data, "train")


@pytest.mark.parametrize("depth", ["val", "val/a"])
def test_a_folder_without_permission_is_named(make_tree, monkeypatch, depth):
    root, scandir = make_tree("val/a/1.png"), os.scandir

    def refuse(folder):
        if os.fspath(folder).endswith(depth):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=f"cannot list folder {root / depth}: Permission denied"):
        ImageFolder(str(root), "val")


def test_a_file_that_cannot_be_read_is_named(make_tree):
    root = make_tree("val/a/1.png")
    source = ImageFolder(str(root), "val")
    (root / "val/a/1.png").unlink()
    with pytest.raises(ImageError, match=r"val/a/1\.png: .*No such file"):
        source[0]


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_pipes_devices_and_sockets_are_named_without_waiting(make_tree, kind):
    root = make_tree("val/a/1.png")
    path = str(root / "val/a/0.png")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        os.symlink("/dev/zero", path)
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
    source = ImageFolder(str(root), "val")
    with pytest.raises(ImageError, match=r"cannot read image .*val/a/0\.png: it is a pipe, a dev"):
        source[0]
    assert source[1]["label"] == 0


def test_a_class_order_places_classes_and_allows_gaps(make_tree, tmp_path):
    root = make_tree("val/cat/1.png", "val/ant/2.png", "val/dog/readme.gif", "train/ant/3.png")
    order = tmp_path / "order.txt"
    order.write_text("dog\ncat\nelk\nant\n")
    source = ImageFolder(str(root), "val", str(order))
    assert source.num_classes == 4
    assert [source[i]["label"] for i in range(2)] == [3, 1]
    order.write_text("dog\ncat\n")
    with pytest.raises(InputError, match=r"val has 1 classes \(ant\) that .*order\.txt does not"):
        ImageFolder(str(root), "val", str(order))
    order.write_text("dog\ncat\ndog\n")
    with pytest.raises(InputError, match="the class dog twice, in lines 1 and 3"):
        ImageFolder(str(root), "val", str(order))
    order.write_text("dog\n\ncat\nant\n")
    with pytest.raises(InputError, match=r"order\.txt: line 2 is empty"):
        ImageFolder(str(root), "val", str(order))
    with pytest.raises(InputError, match=r"no file none\.txt for config\.data\.class_order"):
        ImageFolder(str(root), "val", "none.txt")


def test_some_of_imagenets_classes_keep_their_logits_or_get_their_own(make_tree):
    root = str(make_tree("val/n02123045/1.png", "val/n01443537/2.png"))
    of_imagenet = ImageFolder(root, "val", "imagenet")
    assert of_imagenet.num_classes == 1000
    assert [of_imagenet[i]["label"] for i in range(2)] == [1, 281]  # goldfish, tabby
    assert ImageFolder(root, "val", "sorted").num_classes == 2


def test_a_thousand_classes_with_other_names_are_not_taken_for_imagenets():
    names = [f"class{i:03}" for i in range(1000)]
    with pytest.raises(InputError, match="tree does not contain ImageNet's 1000 classes: 1000"):
        classes_in_order("", names, "tree")
    assert classes_in_order("sorted", names, "tree") == names
    assert classes_in_order("", imagenet_classes(), "tree") == imagenet_classes()


def test_images_are_needed(make_tree, tmp_path):
    root = make_tree("val/a/1.gif")
    (tmp_path / "order.txt").write_text("a")
    with pytest.raises(InputError, match=r"val contains no images \(\.jpg"):
        ImageFolder(str(root), "val", str(tmp_path / "order.txt"))


def test_numbers_in_names_are_in_numeric_order():
    names = ["frame10", "frame2", "frame1", "a9b10", "a9b9", "10", "9", "frame02", "", "b"]
    expected = ["", "9", "10", "a9b9", "a9b10", "b", "frame1", "frame02", "frame2", "frame10"]
    assert sorted(names, key=folder.natural_key) == expected
