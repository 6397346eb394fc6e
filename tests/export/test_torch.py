"""PyTorch models, converted and antialiased, as ONNX files: the same function as in torch."""

from importlib.util import find_spec

import jax
import numpy as np
import pytest

import aa_flax
from aa_flax import antialias, from_torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
if find_spec("torchax") is None:  # importing it here would leave its settings on
    pytest.skip("torchax is missing", allow_module_level=True)

from tests.export.test_onnx_functions import LEVELS, run  # noqa: E402
from tests.sweeps import slow_but  # noqa: E402
from tests.transform.test_from_torch import (  # noqa: E402
    MODELS,
    images,
    in_torch,
    largest_difference,
    randomised,
)

BATCH = np.concatenate([images(seed=seed) for seed in range(3)])


def written(function, tmp_path):
    """Exports a function of images for an example of one, and checks the file."""
    path = aa_flax.export(function, tmp_path / "model.onnx", images()).path
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return path, {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", slow_but(("vit",), MODELS))
def test_a_file_computes_what_the_torch_model_does_for_any_batch(name, tmp_path):
    model = randomised(MODELS[name]())
    function, params = from_torch(model, images())
    path, _ = written(lambda x: function(params, x), tmp_path)
    expected = jax.tree.leaves(in_torch(model.double(), BATCH.astype(np.float64)))
    for level in LEVELS:
        found = list(run(path, BATCH, level=level).values())
        assert largest_difference(found, expected) <= 1e-5


@pytest.mark.parametrize("name", slow_but(("unet",), MODELS))
def test_an_antialiased_torch_model_is_written(name, tmp_path):
    function, params = from_torch(randomised(MODELS[name]()), images())
    steady = antialias(function, stem="blur")  # transformers have no other site
    path, operators = written(lambda x: steady(params, x), tmp_path)
    assert "Pad" in operators  # each blur pads its map at the border
    expected = jax.tree.leaves(jax.jit(steady)(params, BATCH))
    for level in LEVELS:
        found = list(run(path, BATCH, level=level).values())
        assert largest_difference(found, expected) <= 1e-5
