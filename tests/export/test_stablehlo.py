"""StableHLO files: a process with JAX alone computes the model's outputs."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from jax import export as jax_export

import aa_flax
from aa_flax import InputError, create_model
from aa_flax.export.program import Program
from aa_flax.export.stablehlo import smallest_open_size
from tests.compiled import run as logits
from tests.export.models import SIZE, resnet, small
from tests.randomised import randomised

pytest.importorskip("flatbuffers")

# A program that runs the file where neither this package nor Flax can be imported.
ELSEWHERE = """
import sys
sys.modules["aa_flax"] = sys.modules["flax"] = None
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
np.savez(sys.argv[3], all=program.call(images), first=program.call(images[:1, :35]))
"""


@pytest.mark.slow
def test_a_process_without_this_package_computes_the_same(rng, tmp_path):
    model = small("basic")
    path = aa_flax.export(model, tmp_path / "n.stablehlo", size=SIZE, dynamic_size=True).path
    images = rng.standard_normal((3, 97, 128, 3), np.float32)
    np.save(tmp_path / "images.npy", images)
    files = [str(tmp_path / name) for name in ("n.stablehlo", "images.npy", "logits.npz")]
    program = ELSEWHERE.replace(":35", ":96")  # the smallest size of this model when sizes are open
    subprocess.run([sys.executable, "-I", "-c", program, *files], check=True)
    found = np.load(files[2])
    for key, given in (("all", images), ("first", images[:1, :96])):
        expected = np.asarray(logits(model, given))
        assert np.abs(found[key] - expected).max() <= 1e-5 * np.abs(expected).max()
    exported = jax_export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.slow  # tests/export/test_onnx.py exports every pool
@pytest.mark.parametrize("pool", ["aps_l2", "lps"])
def test_adaptive_pools_are_exported(pool, rng, tmp_path):
    model = randomised(resnet(filter_size=None, pool=pool))
    path = aa_flax.export(model, tmp_path / "n.stablehlo", size=SIZE).path
    images = rng.standard_normal((3, SIZE, SIZE, 3), np.float32)
    found = jax_export.deserialize(bytearray(path.read_bytes())).call(images)
    expected = np.asarray(logits(model, images))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_metadata_is_written_next_to_the_file(tmp_path):
    model = randomised(resnet(num_classes=0))
    exported = aa_flax.export(model, tmp_path / "n.stablehlo", size=SIZE)
    metadata = json.loads((tmp_path / "n.stablehlo.json").read_text())
    assert metadata == exported.metadata
    assert metadata["output"] == "embedding"


def test_the_file_contains_no_operation_of_this_package(tmp_path):
    path = aa_flax.export(small("basic"), tmp_path / "n.stablehlo", size=SIZE).path
    text = jax_export.deserialize(bytearray(path.read_bytes())).mlir_module()
    calls = set(re.findall(r"custom_call @(\w+)", text))
    assert calls <= {"shape_assertion"}  # the number of images is at least 1


@pytest.mark.parametrize("name", ["alexnet_lpf4", "vgg11"])
def test_a_classifier_of_fixed_bins_takes_one_size(name):
    model = aa_flax.nn.initializers.abstract(lambda rngs: create_model(name, rngs=rngs))
    program = Program(model, 224, open_size=True, preprocessing=False, logits=model)
    with pytest.raises(InputError, match=f"^{name} cannot be exported for images of every size.*"):
        smallest_open_size(program)
