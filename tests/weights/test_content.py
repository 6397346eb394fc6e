"""Weights files of any kind, told apart by their content."""

import argparse
import hashlib
import io
import os
import pathlib
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aa_flax import InputError
from aa_flax.weights.content import read_content, sha256
from aa_flax.weights.files import read_weights

WEIGHTS = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}


def assert_holds_weights(path, **changes):
    content = read_content(path)
    assert not content.ours
    expected = {**WEIGHTS, **changes}
    assert content.arrays.keys() == expected.keys()
    for name, array in content.arrays.items():
        np.testing.assert_array_equal(array, expected[name].float())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_is_told_by_its_content_whatever_its_suffix(kind, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    if kind == "safetensors":
        save_file(WEIGHTS, path, {"format": "pt"})
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    assert_holds_weights(path)


def test_safetensors_with_torchs_names_need_no_torch(tmp_path, monkeypatch):
    save_file({name: t.bfloat16() for name, t in WEIGHTS.items()}, tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    arrays = read_content(tmp_path / "w.safetensors").arrays
    assert arrays["conv.weight"].tolist() == [[1.0] * 3] * 2
    assert arrays["conv.weight"].dtype == np.float32


def test_what_trainers_write_beside_weights_is_read(tmp_path):
    content = {
        "model": WEIGHTS,
        "args": argparse.Namespace(lr=0.1, output_dir=pathlib.Path("runs/x")),
        "acc": np.float64(77.0),
        "step": np.int64(3),
        "history": np.ones((2, 3)),
        "classes": np.array(["cat", "dog"]),
        "version": torch.__version__,
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        assert_holds_weights(tmp_path / "w.pth")


def test_arrays_of_objects_are_refused_like_code(tmp_path):
    torch.save({"model": WEIGHTS, "x": np.array([1, None], object)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth cannot be read .*ObjectDType"):
        read_content(tmp_path / "w.pth")


def test_averaged_weights_of_a_file_are_told_and_taken_when_asked_for(tmp_path):
    averaged = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    torch.save({"state_dict": WEIGHTS, "state_dict_ema": averaged}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"averaged weights \(state_dict_ema\).*give .*w\.pth#ema"):
        assert_holds_weights(tmp_path / "w.pth")
    assert_holds_weights(f"{tmp_path}/w.pth#ema", **averaged)


def test_a_file_is_read_once_for_its_hash_and_its_weights(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save(WEIGHTS, path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    reads = []
    read_bytes = pathlib.Path.read_bytes
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda p: reads.append(p) or read_bytes(p))
    assert sha256(path) == read_content(path).sha256 == expected
    assert reads == [path]


def test_metadata_that_are_null_are_none(tmp_path):
    header = b'{"__metadata__":null,"a.kernel":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "w.safetensors").write_bytes(data)
    assert read_content(tmp_path / "w.safetensors").metadata == {}


def test_a_compressed_torch_file_is_refused_before_it_is_unpacked(tmp_path):
    torch.save(WEIGHTS, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
        packed.writestr("plain/data/9", bytes(10**7))
    assert torch.load(tmp_path / "w.pth", weights_only=True).keys() == WEIGHTS.keys()
    message = r"^\S*w\.pth is compressed \(10,.* bytes in .*write it again[^\n]*$"
    with pytest.raises(InputError, match=message):
        read_content(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_larger_than_their_file_are_refused(zipped, tmp_path):
    large = torch.zeros(1).expand(10**12)
    shared = torch.zeros(1000)
    odd = ({"fc.bias": large}, {f"{i}.weight": shared.view(1000) for i in range(100)})
    for tensors in odd:
        torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=r"w\.pth holds tensors of .* bytes in .* expanded"):
            read_content(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"\xfe", b"\xff" * 8 + b"{", b"\x10\0\0\0\0\0\0\0{}"])
def test_what_is_no_whole_safetensors_file_is_named(content, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    for read in (read_content, read_weights):
        with pytest.raises(InputError, match=r"w\.safetensors is not a whole safetensors file"):
            read(tmp_path / "w.safetensors")


def test_folders_and_addresses_are_no_weights_files(tmp_path):
    with pytest.raises(InputError, match="is a folder, not a weights file"):
        read_content(tmp_path)
    with pytest.raises(InputError, match=r"gs://bucket/w\.pth is an address"):
        read_content("gs://bucket/w.pth")


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"", "is empty"),
        ("w.safetensors", b"", "is empty"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("w.pth", b"\n<!DOCTYPE html><html>Not found</html>", "is a web page"),
        ("w.pth", b"Access denied\n", "is a text"),
        ("w.pth.gz", b"\x1f\x8b\x08\0", "compressed by gzip"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "weights in several files"),
        ("config.json", b'{"a": 1}', "is JSON"),
        ("w.npz", archive(**{"conv.weight.npy": b"\x93NUMPY"}), "is a NumPy archive"),
        ("w.pt", archive(w__data=b"", w__code__x=b"", **{"w__constants.pkl": b""}), "TorchScript"),
        ("w.pth", archive(a=b"b"), "zip archive that torch did not write"),
    ],
)
def test_what_is_taken_for_weights_is_told_what_it_is(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is .*{message}|{name} {message}"):
        read_content(tmp_path / name)


def test_torchs_advice_to_run_what_is_in_a_file_is_not_passed_on(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"state_dict": WEIGHTS, "more": Evil()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"it would call \w+\.system$"):
        read_content(tmp_path / "w.pth")


@pytest.mark.filterwarnings("error")
def test_a_file_that_was_pickled_in_another_way_says_how_to_save_it(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(InputError, match=r"its default pickle_protocol$"):
        read_content(tmp_path / "w.pth")
