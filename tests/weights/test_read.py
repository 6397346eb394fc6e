"""Weights files of any kind are recognized by their content, and nothing in them is run."""

import argparse
import hashlib
import io
import os
import pathlib
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aa_flax import InputError
from aa_flax.weights.read import read_metadata, read_weights, sha256
from aa_flax.weights.state_dicts import match_names
from tests.weights.conftest import NAME

WEIGHTS = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}


def assert_contains_weights(path, **changes):
    weights = read_weights(path)
    assert weights.torch_names
    expected = {**WEIGHTS, **changes}
    assert weights.arrays.keys() == expected.keys()
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(array, expected[name].float())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_is_recognized_by_its_content_whatever_its_suffix(kind, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    if kind == "safetensors":
        save_file(WEIGHTS, path, {"format": "pt"})
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    assert_contains_weights(path)


def test_safetensors_with_torchs_names_need_no_torch(tmp_path, monkeypatch):
    save_file({name: t.bfloat16() for name, t in WEIGHTS.items()}, tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    arrays = read_weights(tmp_path / "w.safetensors").arrays
    assert arrays["conv.weight"].tolist() == [[1.0] * 3] * 2
    assert arrays["conv.weight"].dtype == np.float32


def test_what_trainers_write_next_to_weights_is_read(tmp_path):
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
        assert_contains_weights(tmp_path / "w.pth")


def test_arrays_of_objects_are_refused_like_code(tmp_path):
    torch.save({"model": WEIGHTS, "x": np.array([1, None], object)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth cannot be read .*ObjectDType"):
        read_weights(tmp_path / "w.pth")


def test_averaged_weights_of_a_file_are_reported_and_read_on_request(tmp_path):
    averaged = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    torch.save({"state_dict": WEIGHTS, "state_dict_ema": averaged}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"averaged weights \(state_dict_ema\).*give .*w\.pth#ema"):
        assert_contains_weights(tmp_path / "w.pth")
    assert_contains_weights(f"{tmp_path}/w.pth#ema", **averaged)


def test_a_file_is_read_once_for_its_hash_and_its_weights(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save(WEIGHTS, path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    reads = []
    read_bytes = pathlib.Path.read_bytes
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda p: reads.append(p) or read_bytes(p))
    assert sha256(path) == read_weights(path).sha256 == expected
    assert reads == [path]


def test_metadata_may_be_null(tmp_path):
    header = b'{"__metadata__":null,"a.kernel":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "w.safetensors").write_bytes(data)
    assert read_weights(tmp_path / "w.safetensors").metadata == {}


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
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_larger_than_their_file_are_refused(zipped, tmp_path):
    large = torch.zeros(1).expand(10**12)
    shared = torch.zeros(1000)
    odd = ({"fc.bias": large}, {f"{i}.weight": shared.view(1000) for i in range(100)})
    for tensors in odd:
        torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=r"w\.pth contains tensors of .* bytes in .* expanded"):
            read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"\xfe", b"\xff" * 8 + b"{", b"\x10\0\0\0\0\0\0\0{}"])
def test_an_incomplete_safetensors_file_is_named(content, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    for read in (read_weights, read_metadata):
        with pytest.raises(InputError, match=r"w\.safetensors is not a whole safetensors file"):
            read(tmp_path / "w.safetensors")


def test_directories_and_addresses_are_not_weights_files(tmp_path):
    with pytest.raises(InputError, match="is a directory, not a weights file"):
        read_weights(tmp_path)
    with pytest.raises(InputError, match=r"gs://bucket/w\.pth is an address"):
        read_weights("gs://bucket/w.pth")


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
        ("model.safetensors.index.json", b'{"weight_map": {}}', "weights in several files"),
        ("config.json", b'{"a": 1}', "is JSON"),
        ("w.npz", archive(**{"conv.weight.npy": b"\x93NUMPY"}), "is a NumPy archive"),
        ("w.pt", archive(w__data=b"", w__code__x=b"", **{"w__constants.pkl": b""}), "TorchScript"),
        ("w.pth", archive(a=b"b"), "zip archive that torch did not write"),
    ],
)
def test_a_file_that_is_not_weights_is_named_by_its_kind(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is .*{message}|{name} {message}"):
        read_weights(tmp_path / name)


def test_torchs_advice_to_run_the_code_in_a_file_is_not_passed_on(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"state_dict": WEIGHTS, "more": Evil()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"it would call \w+\.system$"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("error")
def test_a_file_pickled_in_another_way_is_refused_with_how_to_save_it(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(InputError, match=r"its default pickle_protocol$"):
        read_weights(tmp_path / "w.pth")


def assert_reads_as(path, reference):
    expected = reference.state_dict()
    found = read_weights(path).arrays
    found = match_names(found, expected, path)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_both_of_torchs_formats_are_read_bare_and_wrapped(zipped, wrapped, reference, tmp_path):
    state_dict = reference.state_dict()
    content = {"state_dict": state_dict} if wrapped else state_dict
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert_reads_as(tmp_path / "w.pth", reference)


def test_a_training_checkpoint_of_data_parallel_is_read(reference, tmp_path):
    parallel = torch.nn.DataParallel(reference)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1, momentum=0.9)
    content = {
        "epoch": 3,
        "arch": NAME,
        "state_dict": parallel.state_dict(),
        "best_acc1": torch.tensor(50.0),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    assert_reads_as(tmp_path / "checkpoint.pth.tar", reference)


class Attack:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(zipped, tmp_path):
    attack = {"state_dict": Attack(tmp_path / "ran")}
    torch.save(attack, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError, match=r"contains more than tensors .*GLOBAL _?io\.open"
    ) as error:
        read_weights(tmp_path / "w.pth")
    assert "weights_only" not in str(error.value)  # torch's advice to load it nevertheless
    assert not (tmp_path / "ran").exists()
    with open(tmp_path / "plain.pth", "wb") as file:
        pickle.dump(attack, file)
    with pytest.raises(InputError, match="nothing in it was run"):
        read_weights(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_named(zipped, reference, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(reference.state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"w\.pth cannot be read as torch weights: it is damaged"):
        read_weights(path)


def test_a_torch_file_without_weights_is_named(tmp_path):
    for content in ([1, 2], {"epoch": 3}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(InputError, match=r"w\.pth contains no state dict"):
            read_weights(tmp_path / "w.pth")
