"""JAX's transformations of the CPU kernels, compared with those of the definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from aa_flax import ops
from tests.ops.operations import DEPTHWISE, GROUPED, IMAGE, OPERATIONS, arrays, conv
from tests.sweeps import slow_but

everyone = pytest.mark.parametrize("name", OPERATIONS)
QUICK = ("blur", "upsample", "depthwise", "grouped kernel", "narrow", "winograd", "max pool")
few = pytest.mark.parametrize("name", slow_but(QUICK, OPERATIONS))  # one of each derivative rule


def both_forms(function, *operands):
    """Returns a jitted function's results by this platform's kernels, and by the definitions."""
    fast = jax.jit(function)(*operands)
    with ops.definitions():
        return fast, jax.jit(lambda *operands: function(*operands))(*operands)


def assert_equal(pair, tolerance=1e-5):
    for fast, definition in zip(*map(jax.tree.leaves, pair), strict=True):
        scale = np.abs(definition).max()
        np.testing.assert_allclose(fast, definition, rtol=0, atol=tolerance * scale)


@few
def test_without_jit_values_and_derivatives_are_the_same(name):
    operation, shape = OPERATIONS[name]
    derivatives = jax.value_and_grad(smooth(operation))
    with jax.disable_jit():
        found = derivatives(arrays(*shape))
    assert_equal((found, jax.jit(derivatives)(arrays(*shape))))


BATCH = PartitionSpec("batch")


def two_devices(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("batch",), axis_types=(kind,))


def smooth(operation):
    return lambda x: jnp.sin(operation(x)).sum()


@everyone
def test_values_and_derivatives_of_both_modes_are_the_definitions(name):
    operation, shape = OPERATIONS[name]

    def derivatives(x):
        forward = jax.jvp(operation, (x,), (jnp.cos(x),))
        return forward, jax.linearize(operation, x)[1](x), jax.grad(smooth(operation))(x)

    assert_equal(both_forms(derivatives, arrays(*shape)), 2e-6)


@pytest.mark.parametrize("name", ["blur", "depthwise", "both", "grouped", "max pool"])
def test_derivatives_are_finite_differences(name):
    operation, shape = OPERATIONS[name]
    check_grads(jax.jit(operation), (arrays(*shape),), order=1, eps=1e-2, atol=2e-2, rtol=2e-2)


@few
def test_jacobian_and_hessian_are_the_definitions(name):
    operation, shape = OPERATIONS[name]

    def of_few(few):
        """Applies the operation to an array, with these numbers added to its first values."""
        return operation(arrays(*shape).ravel().at[: len(few)].add(few).reshape(shape))

    def derivatives(few):
        return jax.jacfwd(of_few)(few), jax.hessian(smooth(of_few))(few)

    assert_equal(both_forms(derivatives, jnp.arange(3.0)))


@pytest.mark.parametrize(
    ("axes", "kernel", "groups"),
    [
        ((0, None), DEPTHWISE, 4),
        ((None, 0), DEPTHWISE, 4),
        ((1, 4), DEPTHWISE, 4),
        ((4, 0), GROUPED, 2),
    ],
)
def test_batches_of_images_and_of_kernels(axes, kernel, groups):
    def batched(shape, axis):
        return arrays(*shape) if axis is None else arrays(*shape[:axis], 3, *shape[axis:])

    def gradients(x, kernel):
        def loss(x, kernel):
            return jnp.sin(jax.vmap(lambda *a: conv(*a, groups), axes)(x, kernel)).sum()

        each = jax.vmap(jax.grad(lambda *a: jnp.sin(conv(*a, groups)).sum(), (0, 1)), axes)
        return jax.grad(loss, (0, 1))(x, kernel), each(x, kernel)

    assert_equal(both_forms(gradients, batched(IMAGE, axes[0]), batched(kernel, axes[1])))


@pytest.mark.parametrize("name", ["blur", "depthwise"])
def test_remat_scan_and_the_eager_call_change_nothing(name):
    operation, shape = OPERATIONS[name]
    x = arrays(*shape)
    gradient = jax.grad(smooth(operation))

    def scanned(x):
        return jax.lax.scan(lambda total, _: (total + operation(x).sum(), None), 0.0, length=2)[0]

    expected = jax.jit(gradient)(x)
    np.testing.assert_allclose(jax.grad(smooth(jax.checkpoint(operation)))(x), expected, atol=1e-6)
    np.testing.assert_allclose(gradient(x), expected, atol=1e-6)
    np.testing.assert_allclose(
        jax.grad(scanned)(x), 2 * jax.grad(lambda x: operation(x).sum())(x), atol=1e-6
    )


def test_gradients_of_a_batch_over_two_devices():
    x, kernel = arrays(*IMAGE), arrays(*DEPTHWISE)
    gradients = jax.jit(jax.grad(lambda *a: smooth(ops.blur_pool)(conv(*a, 4)), (0, 1)))
    split = jax.device_put(x, NamedSharding(two_devices(AxisType.Auto), BATCH))
    assert_equal((jax.device_get(gradients(split, kernel)), gradients(x, kernel)))


def test_types_that_hold_shardings_are_kept():
    x, kernel = arrays(*IMAGE), arrays(*DEPTHWISE)
    blurred = jax.jit(lambda *a: ops.blur_pool(conv(*a, 4)))
    mesh = two_devices(AxisType.Explicit)
    with jax.set_mesh(mesh):
        split = blurred(jax.device_put(x, NamedSharding(mesh, BATCH)), kernel)
    assert jax.typeof(split).sharding.spec[0] == "batch"
    assert_equal((jax.device_get(split), blurred(x, kernel)))


def test_unchecked_shard_map_keeps_the_fast_kernel():
    x, kernel = arrays(*IMAGE), arrays(*DEPTHWISE)
    mesh, specs = two_devices(AxisType.Auto), (BATCH, PartitionSpec())
    inner = partial(conv, groups=4)
    mapped = jax.shard_map(inner, mesh=mesh, in_specs=specs, out_specs=BATCH, check_vma=False)
    assert "aa_flax_kernel" in str(jax.make_jaxpr(mapped)(x, kernel))
    assert_equal(tuple(jax.device_get(jax.jit(f)(x, kernel)) for f in (mapped, inner)))


def test_gradients_within_shard_map():
    x, kernel = arrays(*IMAGE), arrays(*DEPTHWISE)
    inner = partial(conv, groups=4)
    mesh, specs = two_devices(AxisType.Auto), (BATCH, PartitionSpec())
    mapped = jax.shard_map(inner, mesh=mesh, in_specs=specs, out_specs=BATCH)
    results = (
        jax.jit(jax.grad(lambda *a, run=run: smooth(ops.blur_pool)(run(*a)), (0, 1)))(x, kernel)
        for run in (mapped, inner)
    )
    assert_equal(tuple(map(jax.device_get, results)))
