"""Dense convolutions by CPU kernels, compared with their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from aa_flax import ops

ZERO, ONE, TWO = (((n, n), (n, n)) for n in (0, 1, 2))
# Image, taps, stride, padding, for products, and for sums by rows, several or one at a time.
CASES = {
    "product": ((2, 5, 4, 3), 1, 1, ZERO),
    "strided product": ((2, 5, 4, 3), 1, 2, ZERO),
    "product by rows": ((2, 53, 3, 16), 1, 1, ZERO),
    "padded product": ((2, 50, 3, 16), 1, 1, ONE),
    "3x3 by rows": ((2, 101, 3, 16), 3, 1, ONE),
    "5x5 by rows": ((1, 102, 2, 16), 5, 1, TWO),
    "3x3": ((2, 6, 5, 3), 3, 1, ONE),
}


def operands(name: str, dtype=jnp.float32):
    draw = np.random.default_rng(0)
    image, taps, stride, padding = CASES[name]
    kernel = (taps, taps, image[-1], 4)
    x, kernel = (jnp.asarray(draw.standard_normal(s), dtype) for s in (image, kernel))
    return partial(ops.conv_general_dilated, strides=(stride,) * 2, padding=padding), x, kernel


def assert_definitions_agree(function, *arrays, tolerance=1e-5):
    fast = jax.jit(function)(*arrays)
    with ops.definitions():
        expected = jax.jit(lambda *a: function(*a))(*arrays)
    for a, b in zip(*map(jax.tree.leaves, (fast, expected)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_the_definitions(name):
    conv, x, kernel = operands(name)

    def derivatives(x, kernel):
        forward = jax.jvp(conv, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))
        return forward, jax.grad(lambda *a: jnp.sin(conv(*a)).sum(), (0, 1))(x, kernel)

    assert_definitions_agree(derivatives, x, kernel)


@pytest.mark.parametrize("name", ["strided product", "product by rows", "3x3 by rows"])
def test_kernel_gradients_of_each_image_and_their_derivatives(name):
    conv, x, kernel = operands(name)
    x = x[:, None]

    def gradients(x, kernel):
        each = jax.vmap(jax.grad(lambda k, x: jnp.sin(conv(x, k)).sum()), (None, 0))
        return jax.jvp(partial(each, kernel), (x,), (jnp.cos(x),))

    assert_definitions_agree(gradients, x, kernel)


@pytest.mark.parametrize("name", ["product by rows", "3x3 by rows"])
def test_periodic_images_have_the_definitions_kernel_gradients(name):
    conv, x, kernel = operands(name)
    with ops.circular_padding():
        assert_definitions_agree(jax.grad(lambda k: jnp.sin(conv(x, k)).sum()), kernel)


def test_kernel_gradients_by_rows_of_bfloat16_are_summed_in_float32():
    conv, x, kernel = operands("3x3 by rows", jnp.bfloat16)
    y, pull_back = jax.vjp(lambda k: conv(x, k), kernel)
    wide_x, wide_kernel, wide_y = (a.astype(jnp.float32) for a in (x, kernel, y))
    (expected,) = jax.vjp(lambda k: conv(wide_x, k), wide_kernel)[1](wide_y)
    (gradient,) = pull_back(y)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        gradient.astype(jnp.float32),
        expected,
        rtol=2**-7,
        atol=1e-2 * float(jnp.abs(expected).max()),
    )


def test_only_the_cpus_gradients_wait_for_what_they_read():
    conv, x, kernel = operands("3x3")
    gradient = jax.jit(jax.grad(lambda k: jnp.sin(conv(x, k)).sum()))

    def program(platform):
        return export.export(gradient, platforms=[platform])(kernel).mlir_module()

    assert "optimization_barrier" in program("cpu")
    assert "optimization_barrier" not in program("cuda")
