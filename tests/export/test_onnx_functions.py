"""Functions as ONNX files: the same outputs as JAX, for other batches and optimization levels."""

from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import aa_flax
from aa_flax import InputError, antialias
from aa_flax.export import functions

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


def array(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


KERNEL = array(3, 3, 4, 6)


def model(images):
    x = lax.conv_general_dilated(images, KERNEL, (2, 2), "SAME", dimension_numbers=NHWC)
    return jax.nn.relu(x)


def run(path, *inputs, level="ORT_ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    outputs = [result.name for result in session.get_outputs()]
    found = session.run(None, dict(zip(names, inputs, strict=True)))
    return dict(zip(outputs, found, strict=True))


def check(f, tmp_path, *inputs):
    """Exports a function with an example of one image, and compares it on the inputs."""
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), inputs)
    path = aa_flax.export(f, tmp_path / "f.onnx", example).path
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    expected = jax.tree.leaves(jax.jit(f)(*inputs))
    for level in LEVELS:
        found = run(path, *inputs, level=level)
        for (name, x), y in zip(found.items(), expected, strict=True):
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            difference = np.abs(x.astype(float) - y).max() / max(np.abs(y).max(), 1e-30)
            assert difference <= 1e-5, (name, level, difference)
    return Counter(node.op_type for node in model.graph.node)


def elementwise(x):
    positive = jnp.abs(x) + 0.5
    names = ("floor", "ceil", "round", "sign", "exp", "sin", "cos", "tanh", "arctan", "exp2")
    return {
        **{name: getattr(jnp, name)(x) for name in names},
        **{name: getattr(jnp, name)(positive) for name in ("log", "log1p", "sqrt", "expm1")},
        **{str(n): lax.integer_pow(positive, n) for n in (-1, 2, 3)},
        "rsqrt": lax.rsqrt(positive),
        "power": positive**x,
        "remainder": lax.rem(x, positive),
        "gelu": jax.nn.gelu(x, approximate=False),
        "erf": lax.erf(x),
        "silu": jax.nn.silu(x),
        "hard swish": jax.nn.hard_swish(x),
        "clip": jnp.clip(x, -0.5, positive),
        "where": jnp.where((x > 0) & (x < 1) | (x <= -1) ^ ~(x >= -2), x, x.sum(1, keepdims=True)),
        "different": (x != jnp.round(x)) & jnp.isfinite(x),
        "integers": (x * 10).astype(jnp.int32) // 3,
        "affine": ((x - x.mean((1, 2, 3), keepdims=True)) * array(4, 1, 1) + array(5))
        / 7
        * array(6, 1),
    }


def reductions(x):
    return {
        "softmax": jax.nn.softmax(x, 1),
        "log_softmax": jax.nn.log_softmax(x),
        "mean": x.mean((2, 3), keepdims=True) - x.mean((1, 2), keepdims=True),
        "variance": x.var((1, 3)),
        "all": jnp.all(x > -2, 2),
        "any": jnp.any(x > 2, (1, 2)),
        "least": x.min(3) * x.prod(3),
        "argmax": x.argmax(1),
        "argmin": x.argmin(-1),
        "cumsum": jnp.cumsum(x, 2) + lax.cumsum(x, 2, reverse=True),
        "whole batch": x.max(0) + x.sum(),
        "norm": jnp.linalg.norm(x, axis=(1, 2)),
        "attention": jnp.einsum("nchw,nciw->nchi", x, x),
        "gram": jnp.einsum("nchw,ndhw->ncd", x, x),
        "linear": x @ array(5, 3)
        + jnp.tensordot(x, array(2, 6), ((2,), (1,))).sum(-1)[..., :1, None],
    }


def layouts(x):
    n = x.shape[0]
    return {
        "reflect": jnp.pad(x, ((0, 0), (1, 1), (2, 0), (0, 3)), "reflect").swapaxes(1, 3),
        "wrap": jnp.pad(x, ((0, 0), (0, 0), (1, 2), (2, 1)), "wrap"),
        "zeros": jnp.pad(x, ((0, 0), (0, 0), (1, 2), (0, 0))),
        "slices": x[:, ::2, 1:-1, ::-1],
        "first": x[:1] + x[:, :1, 2:3],
        "roll": jnp.roll(x, (1, -2), (2, 3)),
        "taken": x[:, :, np.array([3, 0, 0])],
        "pairs": x[:, :, np.array([3, 0, 0]), np.array([1, 1, 4])],
        "rows and columns": x[:, 1][:, np.array([[3], [0]]), np.array([[1, 2, 2]])],
        "larger": jax.image.resize(x, (n, 4, 12, 15), "bilinear"),
        "nearest": jax.image.resize(x, (n, 4, 12, 10), "nearest"),
        "repeated": jnp.repeat(jnp.repeat(x, 2, 2), 3, 3),
        "tiled": jnp.tile(x, (1, 2, 1, 3)),
        "tokens": x.reshape(n, 4, 30).swapaxes(1, 2),
        "windows": x.reshape(n, 4, 3, 2, 5).transpose(0, 2, 1, 3, 4).reshape(n * 3, 40),
        "class token": jnp.concatenate([jnp.ones((n, 1, 30)), x.reshape(n, 4, 30)], 1),
        "halves": jnp.split(x, 2, 1)[1],
        "twice": jnp.concatenate([x, x * 2]),
        "pools": x[:, :, :, :4].reshape(n, 4, 3, 2, 2, 2).max((3, 5)),
        "constant": jnp.zeros((n, 2)) + jnp.arange(2.0),
        "number": jnp.float32(3),
        "stopped": lax.stop_gradient(x[..., None, :, 0]),
    }


@pytest.mark.parametrize("f", [elementwise, reductions, layouts])
def test_operations_are_those_of_jax_for_another_batch(f, tmp_path):
    check(f, tmp_path, array(3, 4, 6, 5))


def convolutions(x):
    conv = partial(lax.conv_general_dilated, x, window_strides=(2, 1), padding=((1, 0), (2, 1)))
    transposed = partial(lax.conv_transpose, x, padding="SAME")
    return {
        "first": conv(array(8, 4, 3, 2), dimension_numbers=NCHW),
        "last": conv(array(3, 2, 5, 8), dimension_numbers=NHWC),
        "mixed": conv(array(3, 2, 4, 8), dimension_numbers=("NCHW", "HWIO", "NHWC")),
        "depthwise": conv(array(8, 1, 3, 2), dimension_numbers=NCHW, feature_group_count=4),
        "dilated": conv(array(8, 4, 2, 2), dimension_numbers=NCHW, rhs_dilation=(2, 3)),
        "transposed": transposed(array(8, 4, 3, 2), (2, 3), dimension_numbers=NCHW),
        "transposed last": transposed(array(2, 2, 5, 4), (2, 2), dimension_numbers=NHWC),
        "grouped": lax.conv_general_dilated(
            *(x, array(8, 2, 3, 3), (1, 1), ((2, 1), (1, 2)), (2, 2)),
            dimension_numbers=NCHW,
            feature_group_count=2,
        ),
        "signal": lax.conv_general_dilated(x[:, :, 0], array(3, 4, 2), (2,), "SAME"),
        "max": lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 2), (1, 1, 2, 1), "SAME"),
        "min last": lax.reduce_window(x, jnp.inf, lax.min, (1, 3, 2, 1), (1, 1, 2, 1), "VALID"),
        "sum": lax.reduce_window(x, 0.0, lax.add, (1, 1, 2, 3), (1, 1, 2, 1), "SAME"),
    }


def test_convolutions_and_pools_of_any_layout_are_those_of_jax(tmp_path):
    counts = check(convolutions, tmp_path, array(2, 4, 6, 5))
    assert (counts["Conv"], counts["ConvTranspose"]) == (6, 3)


def test_an_input_may_be_a_kernel_of_each_call(tmp_path):
    check(lambda x, w: x @ w[0] + lax.batch_matmul(x, w), tmp_path, array(3, 2, 4), array(3, 4, 4))


def test_a_table_may_be_read_at_indices_of_the_input(tmp_path):
    table, indices = array(5, 3), np.array([[4, 0], [1, 9], [-3, 2]], np.int32)
    check(lambda i: jnp.take(table, i, axis=0, mode="clip"), tmp_path, indices)


def test_an_antialiased_function_is_written_without_detours(tmp_path):
    counts = check(antialias(model), tmp_path, array(3, 16, 12, 4))
    assert counts == {"Transpose": 2, "Conv": 2, "Relu": 1, "Pad": 1}


def test_inputs_and_outputs_have_the_names_of_their_trees(tmp_path):
    def f(left, others):
        both = left + others["right"]
        return {"sum": both, "pair": [both, others["mask"]], "left": left, "conv_0": both * 2}

    x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    given = (x, {"right": x, "mask": np.array([True, False])})
    exported = aa_flax.export(f, tmp_path / "f.onnx", given)
    model = onnx.load(exported.path)
    assert [v.name for v in model.graph.input] == ["left", "others.mask", "others.right"]
    names = ["conv_0", "output.left", "pair.0", "pair.1", "sum"]
    assert [v.name for v in model.graph.output] == names
    assert exported.metadata["outputs"]["pair.1"] == {"shape": ["batch"], "type": "bool"}
    assert {fact.key for fact in model.metadata_props} == exported.metadata.keys()
    ones = np.ones((4, 3), np.float32)
    found = run(exported.path, ones, np.ones(4, bool), ones)
    np.testing.assert_array_equal(found["sum"], 2 * ones)
    np.testing.assert_array_equal(found["output.left"], ones)


def test_one_output_is_called_output_and_uint8_images_are_taken(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    exported = aa_flax.export(lambda x: x / 255.0 - 0.5, tmp_path / "f.onnx", images[:1])
    np.testing.assert_allclose(run(exported.path, images)["output"], images / 255 - 0.5, atol=1e-6)


def by_batch(x):
    return x * x.shape[0]


def odd(x):
    return x[: x.shape[0] // 2 * 2] if x.shape[0] > 2 else x


HALF, TABLE = np.ones((2, 3), np.float16), jnp.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("f", "example", "message"),
    [
        (
            lambda x: jnp.sort(x),
            array(2, 3),
            r"no operator for sort at test_onnx_f.*py:\d+ \(<la",
        ),
        (
            by_batch,
            array(2, 3),
            r"this depends: mul at test_onnx_f.*py:\d+ \(by_b",
        ),
        (odd, array(2, 3), "on which this depends: a constant, or which operations"),
        (
            lambda x: x + np.arange(len(x))[:, None],
            array(2, 3),
            "on which this depends: a constant",
        ),
        (lambda x: x[::2], array(2, 3), r"on which this depends: slice at .*\(<lambda>\)"),
        (lambda x: x - x.mean(), array(2, 3), r"on which this depends: div at .*\(<lambda>\)"),
        (lambda x: x * 2, HALF, r"mul at .*: programs that compute in float16, only in float32"),
        (
            lambda i: jnp.take(TABLE, i, axis=0),
            np.zeros(2, np.int32),
            "no operator for gather .*mode='clip'",
        ),
        (lambda x: lax.fori_loop(0, 3, lambda i, y: y * 2, x), array(2, 3), "no operator for scan"),
    ],
)
def test_what_cannot_be_written_is_named_with_its_line(f, example, message, tmp_path):
    with pytest.raises(InputError, match=message):
        aa_flax.export(f, tmp_path / "f.onnx", example)
    assert not list(tmp_path.iterdir())


def test_without_a_runtime_a_function_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(functions, "find_spec", lambda name: None)
    assert aa_flax.export(model, tmp_path / "f.onnx", array(1, 8, 8, 4)).difference is None


def test_openvino_agrees(tmp_path):
    openvino = pytest.importorskip("openvino")
    path = aa_flax.export(antialias(model), tmp_path / "f.onnx", array(1, 16, 12, 4)).path
    options = {"INFERENCE_PRECISION_HINT": "f32"}  # bfloat16 by default, where the CPU has it
    compiled, x = openvino.Core().compile_model(path, "CPU", options), array(3, 16, 12, 4)
    np.testing.assert_allclose(compiled(x)[0], jax.jit(antialias(model))(x), atol=1e-4)
