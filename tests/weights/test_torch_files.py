import pickle

import numpy as np
import pytest
import torch

from aa_flax import InputError, create_model, load_torch_state_dict, to_torch_state_dict
from aa_flax.weights.content import read_content
from aa_flax.weights.state_dicts import match_names, todays_name
from aa_flax.weights.torch_files import write_torch_file
from benchmarks.reference import reference_net
from tests.weights.conftest import NAME


def read_torch_file(path, names=()):
    """Arrays by today's names."""
    return match_names(read_content(path).arrays, names, path)


def assert_reads_as(path, net):
    expected = net.state_dict()
    found = read_torch_file(path, expected)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_both_of_torchs_formats_are_read_bare_and_wrapped(zipped, wrapped, net, tmp_path):
    state_dict = net.state_dict()
    content = {"state_dict": state_dict} if wrapped else state_dict
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert_reads_as(tmp_path / "w.pth", net)


def test_a_training_checkpoint_of_data_parallel_is_read(net, tmp_path):
    parallel = torch.nn.DataParallel(net)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1, momentum=0.9)
    content = {
        "epoch": 3,
        "arch": NAME,
        "state_dict": parallel.state_dict(),
        "best_acc1": torch.tensor(50.0),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    assert_reads_as(tmp_path / "checkpoint.pth.tar", net)


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("module.conv1.weight", "conv1.weight"),
        ("features.module.0.weight", "features.0.weight"),
        (
            "features.denseblock1.denselayer2.norm.1.weight",
            "features.denseblock1.denselayer2.norm1.weight",
        ),
        (
            "module.features.denseblock4.denselayer16.conv.2.weight",
            "features.denseblock4.denselayer16.conv2.weight",
        ),
        ("features.transition1.norm.weight", "features.transition1.norm.weight"),
        ("features.1.conv.1.weight", "features.1.conv.1.weight"),
    ],
)
def test_old_names_become_todays(name, today):
    assert todays_name(name) == today


def test_old_names_of_a_densenet_load():
    weights = {k: v.numpy() for k, v in reference_net("densenet121").state_dict().items()}
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for name, value in weights.items()
        if "num_batches" not in name
    }
    found = to_torch_state_dict(load_torch_state_dict(create_model("densenet121"), old))
    assert all(np.array_equal(found[n], v) for n, v in weights.items() if "num_batches" not in n)


def test_half_precision_is_read_as_float32(tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "w.pth")
    assert read_torch_file(tmp_path / "w.pth")["a"].dtype == np.float32


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
    with pytest.raises(InputError, match=r"holds more than tensors .*GLOBAL _?io\.open") as error:
        read_torch_file(tmp_path / "w.pth")
    assert "weights_only" not in str(error.value)  # torch's advice to load it all the same
    assert not (tmp_path / "ran").exists()
    with open(tmp_path / "plain.pth", "wb") as file:
        pickle.dump(attack, file)
    with pytest.raises(InputError, match="nothing in it was run"):
        read_torch_file(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_named(zipped, net, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"w\.pth cannot be read as torch weights: it is damaged"):
        read_torch_file(path)


def test_what_holds_no_weights_is_named(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(InputError, match=r"text\.pth is a text"):
        read_torch_file(tmp_path / "text.pth")
    for name in ("list.pth", "epoch.pth"):
        with pytest.raises(InputError, match=f"{name} holds no state dict"):
            read_torch_file(tmp_path / name)
    with pytest.raises(InputError, match=r"no file .*absent\.pth"):
        read_torch_file(tmp_path / "absent.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.pth"
    write_torch_file({"a": np.ones(3)}, path)
    with pytest.raises(TypeError):
        write_torch_file({"a": np.array([object()])}, path)
    assert read_torch_file(path)["a"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]
