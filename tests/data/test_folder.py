import os
import shutil
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from aa_flax import InputError
from aa_flax.data import folder_index
from aa_flax.data.classes import classes_in_order, imagenet_classes
from aa_flax.data.folder import ImageFolder
from aa_flax.data.folder_index import load_index
from aa_flax.data.images import ImageError
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
)


def age(root):
    """Makes folders look unchanged for a minute."""
    for folder, *_ in os.walk(root):
        os.utime(folder, (time.time() - 60,) * 2)


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
    scan = folder_index.scan
    monkeypatch.setattr(folder_index, "scan", lambda root: scans.append(root) or scan(root))
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


def test_a_damaged_cache_is_made_anew(make_tree, cache_home):
    root = make_tree("a/1.png")
    age(root)
    load_index(root)
    (cache,) = cache_home.rglob("*.npz")
    whole = cache.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        cache.write_bytes(damaged)
        assert load_index(root).path(0) == "a/1.png"
        assert cache.read_bytes() == whole


def test_without_a_place_for_the_cache_there_is_none(make_tree, monkeypatch):
    root = make_tree("a/1.png")
    age(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "a/1.png"))
    assert load_index(root).path(0) == "a/1.png"


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["val/a/1.png"], "train", r"no folder train/ in .*has to hold train/, val/"),
        (["val/1.png"], "val", r"val has no class folders.*aa_flax\.data\.imagenet_val"),
        (["val/a/1.png", "train/b/1.png"], "val", "different class folders: a, b only in one"),
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
    with pytest.raises(InputError, match="names a class twice"):
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
    with pytest.raises(InputError, match="tree does not hold ImageNet's 1000 classes: 1000"):
        classes_in_order("", names, "tree")
    assert classes_in_order("sorted", names, "tree") == names
    assert classes_in_order("", imagenet_classes(), "tree") == imagenet_classes()


def test_images_are_needed(make_tree, tmp_path):
    root = make_tree("val/a/1.gif")
    (tmp_path / "order.txt").write_text("a")
    with pytest.raises(InputError, match=r"val holds no images \(\.jpg"):
        ImageFolder(str(root), "val", str(tmp_path / "order.txt"))
