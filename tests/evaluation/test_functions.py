"""Any function from images to logits can be evaluated."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from aa_flax import InputError
from aa_flax.evaluation.evaluate import evaluate
from tests.evaluation.tiny import COUNT, CROP, SIZE, Flat, Noise

MEASURES = ("accuracy", "shift", "worst_case", "time")
SETTINGS = {
    "crop_size": CROP,
    "image_size": SIZE,
    "resize_size": 0,
    "batch_size": 8,
    "shift_range": 5,
    "passes": 3,
}


def figures(predict, measures=("accuracy", "shift", "worst_case"), **options):
    found = evaluate(predict, Noise(), measures, name="flat", **SETTINGS, **options)
    return {key: value for key, value in found.items() if key != "time"}


@pytest.fixture(scope="module")
def of_model():
    return figures(Flat())


def weights():
    fc = Flat().fc
    assert fc.bias is not None
    return np.asarray(fc.kernel[...]), np.asarray(fc.bias[...])


def test_a_jax_function_gives_the_numbers_of_the_model(of_model):
    kernel, bias = (jnp.asarray(array) for array in weights())
    found = figures(lambda x: x.reshape(len(x), -1) @ kernel + bias)
    assert found == of_model


def test_a_torch_model_gives_the_numbers_of_the_model(of_model):
    kernel, bias = weights()
    model = torch.nn.Linear(*kernel.shape)
    model.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})

    @torch.no_grad()
    def predict(images):
        return model(torch.from_numpy(images).flatten(1))

    found = figures(predict, MEASURES)
    assert found["top1"] == of_model["top1"]
    assert found["shift"]["consistency"] == of_model["shift"]["consistency"]
    assert found["worst_case"] == of_model["worst_case"]
    assert found["loss"] == pytest.approx(of_model["loss"], rel=1e-5)


def test_a_function_on_the_host_gets_whole_batches_of_normalised_images():
    shapes, kernel = set(), weights()[0]
    lowest = []

    def predict(images):
        shapes.add((type(images), images.dtype.name, images.shape))
        lowest.append(images.min())
        return images.reshape(len(images), -1) @ kernel

    figures(predict, ("shift",), jit=False)
    assert shapes == {(np.ndarray, "float32", (8, CROP, CROP, 3))}
    assert min(lowest) == pytest.approx(-0.485 / 0.229)


def test_only_requested_measures_are_measured():
    found = figures(Flat(), ("worst_case",))
    assert found.keys() == {"model", "data", "num_images", "worst_case", "measured"}
    assert found["measured"].keys() == {"worst_case"}
    assert found["num_images"] == COUNT


def test_results_are_written_to_the_output(tmp_path):
    found = evaluate(Flat(), Noise(), ("shift",), output=tmp_path / "r.json", **SETTINGS)
    assert found["model"] == "flat"
    assert (tmp_path / "r.json").is_file()


def test_results_of_a_model_are_extended_and_those_of_another_go_to_the_next_file(tmp_path):
    def measured(predict, *measures, **more):
        evaluate(predict, Noise(), measures, output=tmp_path / "r.json", **SETTINGS, **more)
        return {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}

    model = Flat()
    measured(model, "accuracy")
    assert measured(model, "worst_case")["r.json"].keys() > {"top1", "worst_case"}
    model.fc.bias = nnx.Param(jnp.arange(6.0))
    assert measured(model, "accuracy").keys() == {"r.json", "r_2.json"}
    for _ in range(2):  # it may be another function
        files = measured(lambda x: x.reshape(len(x), -1)[:, :6], "accuracy", name="f")
    assert files.keys() == {"r.json", "r_2.json", "r_3.json", "r_4.json"}
    for _ in range(2):
        files = measured(lambda x: x[:, 0, :6, 0], "accuracy", name="f", weights={"file": "f"})
    assert files.keys() == {"r.json", *(f"r_{i}.json" for i in range(2, 6))}


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (3, "int is neither a model nor a function of images"),
        (lambda x: x, r"returns an array of shape \(8, 10, 10, 3\) for 8 images; it has to return"),
        (lambda x: x.mean((1, 2)), "gives 3 logits, but the data has 6 classes; give a source"),
        (lambda x: np.float32(x) @ "no", "fails on normalised float32 images 8x10x10x3: "),
    ],
)
def test_what_is_no_function_to_logits_is_refused(predict, message):
    with pytest.raises(InputError, match=message):
        evaluate(predict, Noise(), **SETTINGS)


def test_a_measure_that_needs_a_model_refuses_a_function(tmp_path):
    def predict(images):
        return jnp.zeros((len(images), 6))

    with pytest.raises(
        InputError, match=r"equivariance needs a model of aa_flax, and predict is a"
    ):
        evaluate(predict, Noise(), ["equivariance"], output=tmp_path / "r.json", **SETTINGS)


def test_measures_that_write_files_need_an_output():
    with pytest.raises(InputError, match="diagonal writes files: give output"):
        evaluate(Flat(), Noise(), ["diagonal"], **SETTINGS)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="shift_range must be an integer of at least 1, got 0"):
        evaluate(Flat(), Noise(), **SETTINGS | {"shift_range": 0})
    with pytest.raises(InputError, match=r"seed must be an integer of at least 0, got 1\.5"):
        evaluate(Flat(), Noise(), seed=1.5, **SETTINGS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="unknown on_error 'ignore'; known: stop, skip"):
        evaluate(Flat(), Noise(), on_error="ignore", **SETTINGS)
    with pytest.raises(InputError, match="no measures are given; known: accuracy"):
        evaluate(Flat(), Noise(), (), **SETTINGS)


def test_what_is_no_source_is_named():
    with pytest.raises(InputError, match=r"the source set has no num_classes, .*see aa_flax"):
        evaluate(Flat(), {1}, **SETTINGS)  # pyright: ignore[reportArgumentType]
