"""JAX transformations of a transformed function, and inside it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from aa_flax import InputError, antialias, blur_pool

KERNEL = np.random.default_rng(1).standard_normal((3, 3, 4, 4)).astype(np.float32)
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 4)), jnp.float32)


def conv(x, kernel=KERNEL, stride=2, layout="NHWC"):
    numbers = (layout, "HWIO", layout)
    padding = ((1, 1), (1, 1))
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def block(x, kernel=KERNEL):
    return jax.nn.relu(2 * conv(x, kernel) + 1)


def expected(x, kernel=KERNEL):
    return blur_pool(jax.nn.relu(2 * conv(x, kernel, 1) + 1))


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), a, b)


def keeps_size(x):
    """A function that subsamples and repeats, since a block inside a loop has to keep the size."""
    return jnp.repeat(jnp.repeat(block(x), 2, 1), 2, 2)


def keeps_size_expected(x):
    return jnp.repeat(jnp.repeat(expected(x), 2, 1), 2, 2)


INSIDE = {
    "jit": lambda f, x: jax.jit(f)(x),
    "checkpoint": lambda f, x: jax.checkpoint(f)(x),
    "vmap": lambda f, x: jax.vmap(f)(x[:, None])[:, 0],
    "scan": lambda f, x: lax.scan(lambda c, _: (f(c), c.sum()), x, length=2),
    "while": lambda f, x: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, f(c[1])), (0, x)),
    "condition": lambda f, x: lax.while_loop(
        lambda c: (f(x).sum() > -1e9) & (c[0] < 2), lambda c: (c[0] + 1, f(c[1])), (0, x)
    ),
    "cond": lambda f, x: lax.cond(x.sum() > 1e9, lambda x: x, f, x),
    "switch": lambda f, x: lax.switch(1, [lambda x: x, f, lambda x: 2 * x], x),
    "map": lambda f, x: lax.map(f, jnp.stack([x, 2 * x])),
    "jvp": lambda f, x: jax.jvp(f, (x,), (jnp.cos(x),)),
}


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
def test_programs_inside_are_antialiased(inside):
    close(antialias(partial(inside, keeps_size))(X), inside(keeps_size_expected, X))


OUTSIDE = {
    "jit": jax.jit,
    "vmap": lambda f: lambda x: jax.vmap(f)(x[:, None]),
    "grad": lambda f: jax.grad(lambda x: jnp.sin(f(x)).sum()),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),)),
    "checkpoint": lambda f: jax.grad(lambda x: jnp.sin(jax.checkpoint(f)(x)).sum()),
    "hessian": lambda f: (
        lambda x: jax.jvp(jax.grad(lambda x: jnp.sin(f(x)).sum()), (x,), (jnp.cos(x),))
    ),
    "scan": lambda f: lambda x: lax.scan(lambda c, x: (c, f(x)), 0, jnp.stack([x, 2 * x]))[1],
}


@pytest.mark.parametrize("outside", OUTSIDE.values(), ids=OUTSIDE)
def test_the_result_is_transformed_as_any_function(outside):
    close(outside(antialias(block))(X), outside(expected)(X), 1e-4)


def test_gradients_reach_kernels():
    def kernel_gradient(f):
        return jax.grad(lambda kernel: jnp.sin(f(X, kernel)).sum())(KERNEL)

    close(kernel_gradient(antialias(block)), kernel_gradient(expected), 1e-4)


def test_relu_keeps_its_derivative_at_zero():
    """The function's rule gives 0, the derivative of a maximum 0.5."""
    x = jnp.zeros((1, 8, 8, 4))
    found = jax.grad(lambda x: antialias(lambda x: jax.nn.relu(conv(x)))(x).sum())(x)
    close(found, jnp.zeros_like(x))


def test_a_custom_rule_is_kept_where_nothing_inside_changes():
    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, g: (3 * g,))
    found = jax.grad(lambda x: antialias(lambda x: block(identity(x)))(x).sum())(X)
    close(found, 3 * jax.grad(lambda x: expected(x).sum())(X), 1e-4)


@jax.custom_vjp
def leaky(x, slope):
    return jnp.where(x > 0, x, slope * x)


def leaky_backward(residuals, g):
    x, slope = residuals
    return jnp.where(x > 0, g, 5 * slope * g), jnp.where(x > 0, 0, g * x).sum((0, 1, 2))


leaky.defvjp(lambda x, slope: (leaky(x, slope), (x, slope)), leaky_backward)


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_an_activation_with_a_backward_rule_keeps_it_and_comes_before_the_blur(size):
    x, slope = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 4))), jnp.ones(4) / 8
    f = antialias(lambda x, slope: leaky(conv(x), slope))
    expected = lambda x, slope: blur_pool(leaky(conv(x, stride=1), slope))  # noqa: E731
    close(f(x, slope), expected(x, slope))
    gradients = (jax.grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), (0, 1)) for f in (f, expected))
    close(*(gradient(x, slope) for gradient in gradients), 1e-4)


def test_a_function_with_a_derivative_rule_that_combines_positions_comes_after_the_blur():
    def peaks(x):
        return jnp.exp(x - x.max((1, 2), keepdims=True))

    custom = jax.custom_jvp(peaks)
    custom.defjvp(lambda x, dx: jax.jvp(peaks, x, dx))
    f = antialias(lambda x: custom(conv(x)), before=False)
    close(f(X), peaks(blur_pool(conv(X, stride=1))))


ACROSS = {
    "convolution": lambda x, wrap: jax.nn.relu(2 * wrap(conv)(x) + 1),
    "activation": lambda x, wrap: wrap(jax.nn.relu)(2 * conv(x) + 1),
    "bias": lambda x, wrap: jax.nn.relu(
        wrap(jnp.add)(2 * conv(x), wrap(lambda b: jnp.broadcast_to(b, (2, 4, 4, 4)))(jnp.ones(4)))
    ),
}


@pytest.mark.parametrize("part", ACROSS.values(), ids=ACROSS)
def test_rematerializing_a_part_changes_neither_values_nor_gradients(part):
    f = antialias(partial(part, wrap=jax.checkpoint))
    close(f(X), expected(X))
    close(*(jax.grad(lambda x, f=f: jnp.sin(f(x)).sum())(X) for f in (f, expected)), 1e-4)


@pytest.mark.parametrize("custom", [jax.custom_jvp, jax.custom_vjp])
def test_where_something_inside_changes_the_derivative_is_that_of_what_runs(custom):
    function = custom(block)
    if custom is jax.custom_jvp:
        function.defjvp(lambda primals, tangents: (block(*primals), 0 * block(*primals)))
    else:
        function.defvjp(lambda x: (block(x), x), lambda x, g: (0 * x,))
    found = jax.grad(lambda x: antialias(lambda x: function(x))(x).sum())(X)
    close(found, jax.grad(lambda x: expected(x).sum())(X), 1e-4)


OPEN = {
    "SAME": lambda x: jax.nn.relu(
        lax.conv_general_dilated(
            x, KERNEL, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    ),
    "two": lambda x: jnp.log1p(block(block(x))),
    "max pool": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"
    ),
    "average": lambda x: (
        lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    ),
}


def sizes(text, *constraints):
    return jax.ShapeDtypeStruct(export.symbolic_shape(text, constraints=constraints), jnp.float32)


@pytest.mark.parametrize("f", OPEN.values(), ids=OPEN)
def test_height_and_width_may_be_open_in_an_export(f):
    f = antialias(f)
    exported = export.export(jax.jit(f))(sizes("n, h, w, 4", "h >= 8", "w >= 8"))
    for size in ((9, 12), (8, 11)):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 4)), jnp.float32)
        close(exported.call(x), f(x), 1e-4)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (block, "cannot leave these sizes open: .*'h'"),
        (lambda x: x[:, ::2, ::2], "which pixels a slice of .* keeps while its size is open"),
    ],
)
def test_open_sizes_that_decide_are_refused(f, message):
    export.export(jax.jit(f))(sizes("n, h, w, 4"))
    with pytest.raises(InputError, match=message):
        export.export(jax.jit(antialias(f)))(sizes("n, h, w, 4"))


def test_donated_and_sharded_arguments_are_the_jitted_functions():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(X, sharding)
    inner = jax.jit(block, in_shardings=sharding, out_shardings=sharding)
    for f in (block, inner):
        y = jax.jit(antialias(f), out_shardings=sharding)(x)
        assert y.sharding.is_equivalent_to(sharding, 4)
        close(y, expected(X))
    donated = jax.jit(antialias(keeps_size), donate_argnums=0)
    close(donated(jnp.array(X)), keeps_size_expected(X))


def test_a_number_may_be_repeated_to_a_map():
    f = antialias(lambda x: jax.nn.relu(conv(x) + jnp.full((2, 4, 4, 4), 0.5)))
    close(f(X), blur_pool(jax.nn.relu(conv(X, stride=1) + 0.5)))


def test_arguments_that_are_no_arrays_are_passed_on():
    def f(x, stride, *, name, train):
        assert (stride, name, train) == (2, "net", False)
        return {"y": jax.nn.relu(conv(x["images"], stride=stride)), "name": name}

    result = antialias(f)({"images": X}, 2, name="net", train=False)
    assert result["name"] == "net"
    close(result["y"], blur_pool(jax.nn.relu(conv(X, stride=1))))
    assert antialias(f).__name__ == "f"
