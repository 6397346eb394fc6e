"""ONNX files: the same function as the PyTorch original, in the expected operators."""

import json
from collections import Counter

import jax
import numpy as np
import pytest

import aa_flax
from aa_flax import InputError, create_model, list_models
from aa_flax.config import Config
from aa_flax.data.pixels import normalise
from aa_flax.weights.locate import OfRun, WeightsSource, locate
from tests.compiled import run as logits
from tests.export.models import MODELS, SIZE, resnet, small
from tests.randomised import randomised

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from aa_flax.export.onnx_file import run as run_onnx  # noqa: E402
from tests.sweeps import slow_but  # noqa: E402

CLEAN = {"Transpose", "Conv", "Relu", "Clip", "MaxPool", "Pad", "Add", "Concat", "AveragePool"}
CLEAN |= {"BatchNormalization", "GlobalAveragePool", "Flatten", "Gemm"}


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def of_the_original(name, size, tmp_path):
    """Returns logits of the original with random weights, those of its export, and the file."""
    torch = pytest.importorskip("torch")
    from benchmarks.reference import reference_model

    reference = reference_model(name)
    model = aa_flax.load_torch_state_dict(create_model(name), reference.state_dict())
    x = np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    path = aa_flax.export(model, tmp_path / "net.onnx", size=size).path
    return expected, run_onnx(path, x), path


def relative(found, expected) -> float:
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_logits_are_the_originals(tmp_path):
    expected, found, path = of_the_original("resnet18_lpf4", 64, tmp_path)
    assert relative(found, expected) <= 1e-5
    assert operators(path) == {
        "Transpose": 1,
        "Conv": 20 + 7,  # the model's, and a blur for each pad
        "Pad": 7,
        "Relu": 17,
        "Add": 8,
        **dict.fromkeys(("MaxPool", "GlobalAveragePool", "Flatten", "Gemm"), 1),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models("*_lpf4"))
def test_logits_of_every_model_are_the_originals(name, tmp_path):
    if not aa_flax.models.registry.has_reference(name):
        pytest.skip("not one of the original's")
    expected, found, path = of_the_original(name, 224, tmp_path)
    assert relative(found, expected) <= 1e-5
    assert operators(path).keys() <= CLEAN


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_same_in_few_operators(name, rng, tmp_path):
    model = small(name)
    path = aa_flax.export(model, tmp_path / "net.onnx", size=SIZE).path
    assert operators(path).keys() <= CLEAN
    # DenseNet's batch norms come before their convolutions.
    assert ("BatchNormalization" in operators(path)) == name.startswith("densenet")
    x = rng.standard_normal((3, SIZE, SIZE, 3), np.float32)
    assert relative(run_onnx(path, x), logits(model, x)) <= 1e-5


def test_height_and_width_may_be_left_open(rng, tmp_path):
    model = small("densenet_baseline")
    path = aa_flax.export(model, tmp_path / "net.onnx", size=SIZE, dynamic_size=True).path
    for sizes in ((1, 33, 61), (2, 40, 47), (5, 50, 35)):
        x = rng.standard_normal((*sizes, 3), np.float32)
        assert relative(run_onnx(path, x), logits(model, x)) <= 1e-5


def test_preprocessing_maps_uint8_to_probabilities(rng, tmp_path):
    model = small("basic")
    path = aa_flax.export(model, tmp_path / "net.onnx", size=SIZE, preprocessing=True).path
    images = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    found = run_onnx(path, images)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    assert relative(found, jax.nn.softmax(logits(model, normalise(images)))) <= 1e-5


def test_the_file_has_metadata(tmp_path):
    classifier = create_model("resnet18_lpf4", num_classes=0)
    path = aa_flax.export(classifier, tmp_path / "net.onnx", size=SIZE).path
    model = onnx.load(path)
    facts = {fact.key: fact.value for fact in model.metadata_props}
    assert facts["model"] == "resnet18_lpf4"
    assert json.loads(facts["input"]) == {"shape": ["batch", 40, 40, 3], "type": "float32"}
    assert json.loads(facts["preprocessing"])["mean"] == [0.485, 0.456, 0.406]
    (given,), (result,) = model.graph.input, model.graph.output
    assert given.name, result.name == ("images", "embedding")
    assert [d.dim_param or d.dim_value for d in result.type.tensor_type.shape.dim] == ["batch", 512]


@pytest.mark.parametrize(("names", "expected"), [("abcde", [*"abcde"]), ("abc", [])])
def test_class_names_are_written_where_there_is_one_for_each_logit(names, expected, tmp_path):
    model = small("basic")
    model.config = aa_flax.ModelConfig(class_names=tuple(names))
    path = aa_flax.export(model, tmp_path / "net.onnx", size=SIZE).path
    facts = {fact.key: fact.value for fact in onnx.load(path).metadata_props}
    assert json.loads(facts["class_names"]) == expected


def test_published_weights_and_runs_have_class_names(tmp_path, monkeypatch):
    changes = locate("pretrained", model="resnet18_lpf4").config_changes()
    assert changes["class_names"] == tuple(aa_flax.imagenet_class_names())
    (tmp_path / "config.json").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "data.json").write_text('{"train": {"classes": ["a", "b"]}}')
    monkeypatch.setattr(OfRun, "config", Config().to_dict())
    monkeypatch.setattr(WeightsSource, "config_changes", lambda self: {})  # needs a checkpoint
    assert OfRun(tmp_path).config_changes()["class_names"] == ("a", "b")


@pytest.mark.slow
def test_a_pool_into_fixed_bins_takes_no_open_size_even_where_sizes_share_a_map(tmp_path):
    model = create_model("alexnet_lpf4", num_classes=3)
    with pytest.raises(InputError, match="cannot be exported for images of every size"):
        aa_flax.export(model, tmp_path / "net.onnx", size=95, dynamic_size=True)


POOLS = ("average", "gaussian3", "ideal", "learned3", "aps_l2", "lps")


@pytest.mark.parametrize("pool", slow_but(("gaussian3", "ideal", "lps"), POOLS))
def test_every_pool_is_exported_or_refused(pool, rng, tmp_path):
    model = randomised(resnet(filter_size=None, pool=pool))
    path = tmp_path / "net.onnx"
    if pool.startswith("aps"):
        with pytest.raises(InputError, match=r"ONNX .* as \.stablehlo"):
            aa_flax.export(model, path, size=SIZE)
        assert not path.exists()
    else:
        assert aa_flax.export(model, path, size=SIZE).difference <= 1e-5
