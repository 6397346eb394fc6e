from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aa_flax.ops import conv_general_dilated
from tests.sweeps import slow_but


def lax_conv(x, kernel, strides, padding, dilation, conv=lax.conv_general_dilated):
    return conv(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


depthwise_conv = partial(lax_conv, conv=conv_general_dilated)


def value_and_gradients(conv, x, kernel, *window):
    y, pull_back = jax.vjp(lambda x, kernel: conv(x, kernel, *window), x, kernel)
    return y, *pull_back(jnp.cos(y))


def random_arrays(rng, size, kernel_size=3, dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
    x = jnp.asarray(rng.standard_normal((4, *size, 6)), dtype)
    return x, jnp.asarray(rng.standard_normal((kernel_size, kernel_size, 1, 6)), dtype)


@pytest.mark.parametrize("size", slow_but([(8, 11), (2, 1)], [(9, 9), (8, 11), (2, 1)]))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("kernel_size", "dilation", "padding"),
    [
        (3, 1, ((1, 1), (1, 1))),
        (3, 2, ((2, 2), (2, 2))),
        (5, 1, ((2, 3), (4, 2))),
        (1, 1, ((0, 0), (0, 0))),
    ],
)
def test_equals_lax_with_its_gradients(size, stride, kernel_size, dilation, padding, rng):
    x, kernel = random_arrays(rng, size, kernel_size)
    window = ((stride, stride), padding, (dilation, dilation))
    expected = value_and_gradients(lax_conv, x, kernel, *window)
    results = value_and_gradients(depthwise_conv, x, kernel, *window)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-5)


WINDOW = ((1, 1), ((1, 1), (1, 1)), (1, 1))


def test_bfloat16_is_summed_in_float32(rng):
    x, kernel = random_arrays(rng, (16, 16), dtype=jnp.bfloat16)
    y, pull_back = jax.vjp(lambda x, kernel: depthwise_conv(x, kernel, *WINDOW), x, kernel)
    wide_x, wide_kernel, wide_y = (a.astype(jnp.float32) for a in (x, kernel, y))
    expected, wide_pull_back = jax.vjp(lambda *a: lax_conv(*a, *WINDOW), wide_x, wide_kernel)
    references = (expected, *wide_pull_back(wide_y))
    for result, reference in zip((y, *pull_back(y)), references, strict=True):
        assert result.dtype == jnp.bfloat16
        np.testing.assert_allclose(result.astype(jnp.float32), reference, rtol=2**-8, atol=1e-5)


def test_has_second_derivatives(rng):
    x, kernel = random_arrays(rng, (5, 5))

    def penalty(kernel, conv):
        y, pull_back = jax.vjp(lambda x: conv(x, kernel, *WINDOW), x)
        return jnp.square(pull_back(y)[0]).sum()

    expected = jax.grad(penalty)(kernel, lax_conv)
    np.testing.assert_allclose(jax.grad(penalty)(kernel, depthwise_conv), expected, rtol=1e-4)


def test_a_batch_over_two_devices_gives_the_same_gradients(rng):
    x, kernel = random_arrays(rng, (8, 8))
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    gradients = jax.jit(lambda x, kernel: value_and_gradients(depthwise_conv, x, kernel, *WINDOW))
    results = gradients(jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch"))), kernel)
    for result, reference in zip(results, gradients(x, kernel), strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-5)


def test_layers_use_it_on_cpu(rng):
    x, kernel = random_arrays(rng, (8, 8))
    program = jax.jit(lambda *a: depthwise_conv(*a, *WINDOW)).lower(x, kernel).compile()
    assert " convolution(" not in (program.as_text() or " convolution(")
