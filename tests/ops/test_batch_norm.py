"""Batch norm's affine derivative, compared with automatic differentiation of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from aa_flax import ops
from aa_flax.ops.cpu.batch_norm import batch_norm


def operands(shape=(3, 4, 5, 2), mean=0.0):
    draw = np.random.default_rng(0)
    x, scale, bias = (draw.standard_normal(s) for s in (shape, shape[-1:], shape[-1:]))
    return tuple(jnp.asarray(a, jnp.float32) for a in (x + mean, scale, bias))


def loss(x, scale, bias):
    y, mean, var = batch_norm(x, scale, bias, 1e-5)
    return (jnp.sin(3 * y) * jnp.cos(x)).sum() + jnp.sin(mean).sum() + jnp.cos(var).sum()


GRADIENTS = jax.grad(loss, (0, 1, 2))


def assert_definitions_agree(function, *arrays, tolerance=2e-6):
    fast = jax.jit(function)(*arrays)
    with ops.definitions():
        expected = jax.jit(lambda *a: function(*a))(*arrays)
    for a, b in zip(*map(jax.tree.leaves, (fast, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (7, 3), (1, 6, 2), (2, 3, 2, 2, 3)])
def test_values_and_derivatives_of_both_modes_are_the_definitions(shape, devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)

    def derivatives(*arrays):
        directions = tuple(map(jnp.cos, arrays))
        forward = jax.jvp(
            lambda x, scale, bias: batch_norm(x, scale, bias, 1e-5), arrays, directions
        )
        return forward, GRADIENTS(*arrays)

    assert_definitions_agree(derivatives, *operands(shape))


def test_second_derivatives_and_a_batch_of_batches_are_the_definitions():
    arrays = operands((3, 2, 2, 2))
    directions = tuple(map(jnp.cos, arrays))

    def seconds(*arrays):
        def slope(*arrays):
            return sum(jnp.vdot(g, d) for g, d in zip(GRADIENTS(*arrays), directions, strict=True))

        stacked = tuple(jnp.stack([a, 2 * a]) for a in arrays)
        return jax.grad(slope, (0, 1, 2))(*arrays), jax.vmap(GRADIENTS)(*stacked)

    assert_definitions_agree(seconds, *arrays, tolerance=1e-5)


def test_gradients_do_not_cancel_at_a_large_mean():
    def gradient(x, scale, bias):
        return jax.grad(lambda x: (batch_norm(x, scale, bias, 1e-5)[0] ** 3).sum())(x)

    arrays = operands((64, 4, 4, 1), mean=3000.0)
    with jax.enable_x64(True), ops.definitions():
        exact = np.asarray(gradient(*(a.astype(jnp.float64) for a in arrays)))
    found = jax.jit(gradient)(*arrays)
    np.testing.assert_allclose(found, exact, atol=2e-3 * np.abs(exact).max())


def test_a_batch_over_two_devices_has_the_same_statistics_and_gradients():
    x, scale, bias = operands((4, 3, 3, 2))
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    run = jax.jit(lambda x, s, b: (batch_norm(x, s, b, 1e-5), GRADIENTS(x, s, b)))
    pairs = zip(*map(jax.tree.leaves, (run(split, scale, bias), run(x, scale, bias))), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_within_definitions_nothing_of_it_is_in_the_program():
    with ops.definitions():
        program = str(jax.make_jaxpr(jax.jvp, static_argnums=0)(loss, operands(), operands()))
    assert "aa_flax_kernel" not in program
    assert "custom_jvp" not in program
