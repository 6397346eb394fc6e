import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax.nn.layers import linear
from aa_flax.ops import definitions
from aa_flax.ops.linear import dot_general

DIMENSIONS = (((1,), (0,)), ((), ()))


def product(x, kernel):
    return dot_general(x, kernel, DIMENSIONS)


@pytest.fixture(params=[jnp.bfloat16, jnp.float16])
def operands(request, rng):
    x, kernel = (rng.standard_normal(shape) for shape in ((3, 64), (64, 5)))
    return jnp.asarray(x, request.param), jnp.asarray(kernel, jnp.float32)


def test_a_product_in_half_precision_is_that_of_float64_rounded_once(operands):
    x, kernel = operands
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    y = product(x, kernel)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=1e-5, rtol=jnp.finfo(x).eps)


def test_its_gradients_and_vmap_are_those_of_the_definition(operands, rng):
    x, kernel = operands
    cotangent = jnp.asarray(rng.standard_normal((3, 5)), x.dtype)
    kernels = jnp.stack([kernel, 2 * kernel])

    def both():
        gradients = jax.vjp(product, x, kernel)[1](cotangent)
        return [*gradients, jax.vmap(product, (None, 0))(x, kernels)]

    found = both()
    with definitions():
        expected = both()
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        error = jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max()
        assert error < 8 * jnp.finfo(x).eps * jnp.abs(b).max()


def test_on_cpu_alone_the_kernel_is_not_converted(operands):
    traced = jax.jit(product).trace(*operands)
    converted = f"tensor<64x5x{'bf16' if operands[0].dtype == jnp.bfloat16 else 'f16'}>"
    assert converted not in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("cuda", "tpu"):
        assert converted in traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_linear_layer_computes_in_its_type_or_that_of_its_input(rng):
    x = rng.standard_normal((2, 4), np.float32)
    for dtype, given, expected in (
        (jnp.bfloat16, x, jnp.bfloat16),
        (None, x, jnp.float32),
        (None, jnp.asarray(x, jnp.bfloat16), jnp.float32),
    ):
        assert linear(4, 3, dtype=dtype, rngs=nnx.Rngs(0))(jnp.asarray(given)).dtype == expected
