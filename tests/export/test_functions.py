"""Functions as files of StableHLO."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aa_flax
from aa_flax import InputError, antialias

pytest.importorskip("flatbuffers")
KERNEL = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 4, 6)), jnp.float32)


def model(images):
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(images, KERNEL, (2, 2), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(x)


def images(n=2):
    return np.random.default_rng(1).standard_normal((n, 16, 12, 4), np.float32)


def test_an_antialiased_function_takes_any_number_of_images(tmp_path):
    exported = aa_flax.export(antialias(model), tmp_path / "net.stablehlo", images())
    assert exported.difference <= 1e-6
    program = jax.export.deserialize(bytearray(exported.path.read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    np.testing.assert_allclose(program.call(images(5)), antialias(model)(images(5)), atol=1e-5)
    facts = json.loads((tmp_path / "net.stablehlo.json").read_text())
    assert facts["inputs"] == {"images": {"shape": ["batch", 16, 12, 4], "type": "float32"}}


def test_pytrees_of_inputs_and_outputs_keep_their_names(tmp_path):
    def f(left, others):
        return {"sum": left + others["right"], "pair": [left.mean(1), others["mask"]]}

    x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    given = (x, {"right": x, "mask": np.array([True, False])})
    exported = aa_flax.export(f, tmp_path / "f.stablehlo", given)
    assert list(exported.metadata["inputs"]) == ["left", "others.mask", "others.right"]
    assert exported.metadata["outputs"]["pair.1"] == {"shape": ["batch"], "type": "bool"}
    ones = np.ones((4, 3), np.float32)
    program = jax.export.deserialize(bytearray(exported.path.read_bytes()))
    found = program.call(ones, {"right": ones, "mask": np.ones(4, bool)})
    np.testing.assert_array_equal(found["sum"], 2 * ones)


@pytest.mark.parametrize(
    ("f", "inputs", "options", "message"),
    [
        (model, "images", {}, "example_inputs takes arrays, .* got a str"),
        (model, (), {}, "same number of examples as its first axis, got no array"),
        (lambda a, b: a, (images(), images(3)), {}, r"got a \(2, 16, .*, b \(3, 16, .*bind param"),
        (lambda x: x, jnp.ones(()), {}, "same number of examples"),
        (lambda x: x[: x.shape[0] // 2 * 3 - 2], images(), {}, "for any number of examples"),
        (model, images(), {"size": 0}, "are options of a model; leave them out"),
        (model, images(), {"int8_min_agreement": 0.5}, "are options of a model; leave them out"),
        (3, images(), {}, "export takes a model or a function, got a int"),
    ],
)
def test_what_cannot_be_exported_is_named_and_leaves_no_file(f, inputs, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        aa_flax.export(f, tmp_path / "f.stablehlo", inputs, **options)
    assert not list(tmp_path.iterdir())


def test_a_function_that_gives_other_values_each_time_is_refused(tmp_path):
    calls = iter(range(10))
    with pytest.raises(InputError, match=r"differs from the function by .* was not kept"):
        aa_flax.export(lambda x: x + next(calls), tmp_path / "f.stablehlo", images())
