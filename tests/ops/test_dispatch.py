"""The choice of an implementation, and programs of the definitions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from aa_flax import blur_pool, create_model, ops
from aa_flax.data.pixels import normalise
from aa_flax.models.classifier import Classifier
from aa_flax.nn.blur import BlurPool, MaxBlurPool
from aa_flax.nn.layers import BatchNorm, conv2d, linear
from tests.ops.operations import OPERATIONS, arrays, conv

everyone = pytest.mark.parametrize("name", OPERATIONS)


class EveryKernel(Classifier):
    """A model with every operation that has a kernel for CPU."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = conv2d(3, 4, 3, padding=1, rngs=rngs)
        self.bn = BatchNorm(4, rngs=rngs)
        self.pool = MaxBlurPool(3, filter_size=3, window_padding=1)
        self.depthwise = conv2d(4, 4, 3, padding=1, groups=4, rngs=rngs)
        self.grouped = conv2d(4, 4, 3, padding=1, groups=2, rngs=rngs)
        self.blur = BlurPool(4)
        self.narrow = conv2d(4, 4, 3, padding=1, use_bias=True, rngs=rngs)
        self.fc = linear(4, 3, rngs=rngs)

    def named_blocks(self):
        yield "all", self.all

    def all(self, x):
        x = self.pool(jnp.tanh(self.bn(self.conv(x))))
        return self.narrow(self.blur(self.grouped(jnp.tanh(self.depthwise(x)))))

    def __call__(self, x):
        x = self.forward_features(x)
        return self.fc(x.mean((1, 2)))


@pytest.fixture(scope="module")
def model() -> EveryKernel:
    model = EveryKernel()
    model.eval()
    return model


def lowered(function, x, *platforms: str) -> str:
    return export.export(jax.jit(function), platforms=platforms)(x).mlir_module()


@everyone
def test_definitions_hold_no_primitive_of_ours_and_no_branch(name):
    operation, shape = OPERATIONS[name]
    with ops.definitions():
        program = str(jax.make_jaxpr(jax.grad(lambda x: operation(x).sum()))(arrays(*shape)))
    for primitive in ("aa_flax_kernel", "platform_index", "cond[", "custom_vjp", "gather["):
        assert primitive not in program


def test_definitions_are_plain_operations_of_jax():
    image = arrays(2, 8, 8, 4)
    with ops.definitions():
        blur = str(jax.make_jaxpr(ops.blur_pool)(image))
        depthwise = str(jax.make_jaxpr(lambda x: conv(x, arrays(3, 3, 1, 4), 4))(image))
        maximum = str(jax.make_jaxpr(lambda x: ops.max_pool(x, 3, stride=2, padding=1))(image))
    assert blur.count("name=_pad") == blur.count("conv_general_dilated[") == 1
    assert depthwise.count(" = ") == depthwise.count("conv_general_dilated[") == 1
    assert maximum.count("reduce_window_max[") == maximum.count(" = reduce_window") == 1


SMOOTHING = ("blur", "blur of an axis", "upsample")


@pytest.mark.parametrize(
    "name", sorted({*OPERATIONS} - {*SMOOTHING, "gather", "matmul", "max pool"})
)
def test_a_convolution_has_a_kernel_on_cpu_alone(name):
    operation, shape = OPERATIONS[name]
    cpu, *others = (lowered(operation, arrays(*shape), p) for p in ("cpu", "cuda", "tpu"))
    assert not any("stablehlo.case" in program for program in (cpu, *others))
    assert [other.count("stablehlo.convolution") for other in others] == [1, 1]
    assert ("stablehlo.convolution" in cpu) == name.startswith("grouped")
    assert "feature_group_count = 1 " in cpu or "stablehlo.convolution" not in cpu


@pytest.mark.parametrize("name", SMOOTHING)
@pytest.mark.parametrize(
    ("platform", "expected"), [("cpu", "gather"), ("cuda", "gather"), ("tpu", "dot_general")]
)
def test_a_blur_and_its_gradient_have_the_kernel_of_their_platform(name, platform, expected):
    operation, shape = OPERATIONS[name]
    gradient = jax.grad(lambda x: jnp.sin(operation(x)).sum())
    program = lowered(gradient, arrays(*shape), platform)
    kinds = {"gather", "dot_general"} & set(re.findall(r"stablehlo\.(\w+)", program))
    assert kinds == {expected}
    for other in ("case", "convolution", "concatenate", "scatter"):
        assert f"stablehlo.{other}" not in program


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_bfloat16_model_computes_in_bfloat16_and_copies_nothing_together(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    model = nnx.eval_shape(lambda: create_model("resnet18_lpf4", dtype="bfloat16"))
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.bfloat16)
    forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    program = export.export(forward, platforms=[platform])(state, image).mlir_module()
    convolutions = re.findall(r"stablehlo\.convolution.* -> tensor<[\dx]*x(\w+)>", program)
    assert convolutions == ["bf16"] * 20
    assert "f64" not in program
    assert "stablehlo.concatenate" not in program
    assert program.count("stablehlo.reduce_window") == (platform == "tpu")


def test_a_jitted_function_is_traced_again_within_definitions_and_circular_padding():
    x = arrays(1, 8, 8, 2)
    blur = jax.jit(ops.blur_pool)
    plain = blur(x)
    with ops.definitions():
        assert "convolution" in blur.lower(x).as_text()
    with ops.circular_padding():
        circular = blur(x)
    np.testing.assert_array_equal(circular, ops.blur_pool(x, padding="circular"))
    np.testing.assert_array_equal(blur(x), plain)
    assert (circular != plain).any()


def test_gather_by_name_gives_way_to_definitions():
    with ops.definitions():
        program = jax.make_jaxpr(lambda x: ops.blur_pool(x, implementation="gather"))
        assert "conv_general_dilated" in str(program(arrays(1, 8, 8, 2)))


def test_a_model_has_the_same_values_and_derivatives_by_its_definitions(model):
    x = arrays(2, 12, 12, 3)

    def derivatives(x):
        return jax.jvp(model, (x,), (jnp.cos(x),)), jax.grad(lambda x: jnp.sin(model(x)).sum())(x)

    fast = jax.jit(derivatives)(x)
    with ops.definitions():
        program = str(jax.make_jaxpr(derivatives)(x))
        defined = jax.jit(derivatives)(x)
    assert "aa_flax_kernel" not in program
    assert "platform_index" not in program
    for a, b in zip(*map(jax.tree.leaves, (fast, defined)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_model_runs_without_jit(model):
    x = arrays(2, 12, 12, 3)
    derivatives = jax.value_and_grad(lambda x: jnp.sin(model(x)).sum())
    with jax.disable_jit():
        found = derivatives(x)
    for a, b in zip(*map(jax.tree.leaves, (found, jax.jit(derivatives)(x))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_model_has_a_hessian(model):
    direction, x = arrays(2, 1, 8, 8, 3)

    def loss(step):
        return jnp.sin(model(x + step * direction)).sum()

    curvature = jax.jit(jax.hessian(loss))(0.3)
    with ops.definitions():
        expected = jax.jit(jax.hessian(loss))(0.3)
    assert float(curvature) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "alexnet_lpf4",
        "vgg11_bn_lpf3",
        "resnext50_32x4d_lpf2",
        "mobilenet_v2_lpf3",
        pytest.param("densenet121_lpf5", marks=pytest.mark.slow),
    ],
)
def test_every_family_has_forward_mode(name):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=3))
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)

    def derivative(state, x):
        return jax.jvp(nnx.merge(graph, state), (x,), (x,))

    primal, tangent = jax.eval_shape(derivative, state, image)
    assert primal.shape == tangent.shape == (1, 3)


def test_no_rank_is_promoted(model):
    image = arrays(2, 12, 12, 3)
    with jax.numpy_rank_promotion("raise"):
        jax.make_jaxpr(jax.grad(lambda x: model(x).sum()))(image)
        BatchNorm(3, rngs=nnx.Rngs(0))(image)
        normalise(jnp.zeros((2, 4, 4, 3), jnp.uint8))
        for operation, shape in OPERATIONS.values():
            jax.make_jaxpr(jax.grad(lambda x, run=operation: run(x).sum()))(arrays(*shape))
        ops.avg_pool(arrays(1, 4, 4, 2), 2)
        ops.adaptive_avg_pool(arrays(1, 5, 5, 2), 2)


def test_export_for_two_platforms_and_any_batch():
    (batch,) = export.symbolic_shape("b")
    image = jax.ShapeDtypeStruct((batch, 6, 6, 4), jnp.float32)

    @jax.jit
    def run(x):
        return ops.blur_pool(conv(ops.max_pool(x, 2, stride=1), arrays(3, 3, 1, 4), 4))

    exported = export.export(run, platforms=("cpu", "cuda"))(image)
    for size in (1, 3):
        x = arrays(size, 6, 6, 4)
        y, pull_back = jax.vjp(jax.jit(exported.call), x)
        expected, expected_pull_back = jax.vjp(run, x)
        np.testing.assert_allclose(y, expected, atol=1e-6)
        np.testing.assert_allclose(pull_back(y)[0], expected_pull_back(y)[0], atol=1e-6)


before_0_12 = tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12)


def barred(x):
    return jnp.sin(ops.materialised(jnp.cos(x)))


def test_materialised_is_the_identity_with_all_derivatives():
    x = jnp.arange(3.0)
    for transform in (jax.vmap, jax.jacfwd, jax.jacrev, jax.hessian, jax.checkpoint):
        expected = transform(lambda x: jnp.sin(jnp.cos(x)))(x)
        np.testing.assert_allclose(jax.jit(transform(barred))(x), expected, atol=1e-6)


def test_only_programs_for_cpu_have_its_barrier():
    def program(platform):
        return export.export(jax.jit(barred), platforms=[platform])(jnp.ones(3)).mlir_module()

    assert "optimization_barrier" in program("cpu")
    assert "optimization_barrier" not in program("cuda")


def test_within_definitions_there_is_no_barrier():
    with ops.definitions():
        program = str(jax.make_jaxpr(jax.grad(lambda x: barred(x).sum()))(jnp.ones(3)))
    assert "barrier" not in program
    assert "aa_flax_kernel" not in program


@pytest.mark.skipif(before_0_12, reason="XLA drops the barrier of a bfloat16 before it fuses")
def test_a_narrow_blur_is_not_computed_again_by_what_reads_it():
    x = jnp.ones((1, 16, 16, 8), jnp.bfloat16)
    pooled = jax.jit(lambda x: ops.max_pool(blur_pool(x, 4), 3, stride=1))
    program = pooled.lower(x).compile().as_text() or ""
    fusions = [part for part in program.split("\n\n") if "ENTRY" not in part]
    looks_up = ["gather(" in fusion for fusion in fusions]
    compares = ["direction=GE" in fusion for fusion in fusions]  # the pool's
    assert any(looks_up)
    assert any(compares)
    assert not any(map(all, zip(looks_up, compares, strict=True)))
