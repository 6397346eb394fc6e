import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.io import savemat

from aa_flax import InputError
from aa_flax.data import imagenet_val
from aa_flax.data.imagenet_val import sort_validation

WNIDS = {1: "n02119789", 2: "n02100735", 3: "n02110185", 1001: "n00001740"}
TRUTH = (3, 1, 3, 2)
EXPECTED = {
    "n02110185/ILSVRC2012_val_00000001.JPEG",
    "n02119789/ILSVRC2012_val_00000002.JPEG",
    "n02110185/ILSVRC2012_val_00000003.JPEG",
    "n02100735/ILSVRC2012_val_00000004.JPEG",
}


@pytest.fixture
def val(tmp_path):
    """Writes a flat folder of four images, each containing its number."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(1, 5):
        (folder / f"ILSVRC2012_val_{i:08}.JPEG").write_text(str(i))
    return folder


@pytest.fixture
def devkit(tmp_path):
    """Writes a devkit of four classes: numbers, WordNet ids and other fields."""
    data = tmp_path / "devkit/data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{i}\n" for i in TRUTH))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number, wnid, "kit fox, Vulpes", 0) for number, wnid in WNIDS.items()]
    savemat(data / "meta.mat", {"synsets": np.array(rows, fields).reshape(-1, 1)})
    return data.parent


def placed(out):
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("refused", [(), ("link",), ("link", "symlink")])
def test_images_are_linked_or_else_copied_into_class_folders(
    val, devkit, tmp_path, monkeypatch, refused
):
    def refuse(*_):
        raise OSError

    for way in refused:
        monkeypatch.setattr(os, way, refuse)
    out = tmp_path / "tree/val"
    sort_validation(val, devkit, out)
    assert placed(out) == EXPECTED
    image = out / "n02119789/ILSVRC2012_val_00000002.JPEG"
    assert image.read_text() == "2"
    assert image.samefile(val / image.name) == (len(refused) < 2)
    assert image.is_symlink() == (len(refused) == 1)


def test_an_interrupted_call_resumes_and_a_finished_one_changes_nothing(
    val, devkit, tmp_path, monkeypatch, capsys
):
    out, link = tmp_path / "val", os.link

    def stop_at_third(source, destination):
        if source.name.endswith("3.JPEG"):
            raise KeyboardInterrupt
        link(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            sort_validation(val, devkit, out)
    assert not out.exists()
    for message in ("4 images of 3 classes", "is complete already"):
        sort_validation(val, devkit, out)
        assert message in capsys.readouterr().out
        assert placed(out) == EXPECTED


def test_images_that_do_not_fit_the_devkit_are_refused(val, devkit, tmp_path):
    (val / "ILSVRC2012_val_00000002.JPEG").rename(val / "ILSVRC2012_val_00000009.JPEG")
    with pytest.raises(InputError, match="the 4 images of the devkit: 1 missing, 1 unknown, such"):
        sort_validation(val, devkit, tmp_path / "val")
    with pytest.raises(InputError, match="no folder"):
        sort_validation(tmp_path / "nowhere", devkit, tmp_path / "val")


def test_a_folder_that_is_something_else_is_left_alone(val, devkit, tmp_path):
    with pytest.raises(InputError, match="exists and is not the sorted validation set; remove"):
        sort_validation(val, devkit, val)
    assert len(list(val.iterdir())) == 4


@pytest.mark.parametrize("wnid", ["../../outside", "/outside", "n0211978", "n02119789/..", "N1"])
def test_only_wordnet_ids_become_folders(val, devkit, tmp_path, wnid):
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    rows = [(number, wnid if number == 1 else "n02110185") for number in WNIDS]
    savemat(devkit / "data/meta.mat", {"synsets": np.array(rows, fields)})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"meta\.mat: .* is not a WordNet id; unpack"):
        sort_validation(val, devkit, tmp_path / "a/b/val")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("truth", ["1\n2\n3\n4\n", "1\n\n3\n2\n", "one\n"])
def test_a_truth_of_unknown_classes_is_named(val, devkit, tmp_path, truth):
    (devkit / "data/ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    with pytest.raises(InputError, match=r"ground_truth\.txt: line \d, '.*', is not a class of"):
        sort_validation(val, devkit, tmp_path / "val")


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:300], lambda _: b"", lambda _: b"nonsense"]
)
def test_a_damaged_devkit_is_named(val, devkit, tmp_path, damage):
    meta = devkit / "data/meta.mat"
    meta.write_bytes(damage(meta.read_bytes()))
    with pytest.raises(InputError, match=r"cannot read the synsets of .*meta\.mat \(.*; unpack"):
        sort_validation(val, devkit, tmp_path / "val")


def test_the_command_names_what_is_missing(val, tmp_path):
    command = [sys.executable, "-m", imagenet_val.__name__, val, tmp_path, tmp_path / "val"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no file ")
    assert "ILSVRC2012_devkit_t12.tar.gz" in done.stderr
