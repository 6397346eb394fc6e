import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from aa_flax import BlurUpsample, InputError, blur_pool, blur_upsample, ops
from aa_flax.ops.blur import binomial_taps
from tests.sweeps import slow_but

PADDINGS = ("reflect", "replicate", "zero", "circular")


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("implementation", ["conv", "matmul", None])  # None: gather, on CPU
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", slow_but([(13, 8)], [(9,), (13, 8), (7, 6, 5)]))
def test_it_is_the_adjoint_of_blur_pool_times_the_stride_of_each_axis(
    size, padding, implementation, rng
):
    for k, stride, offset in ((1, 2, 0), (3, 1, 0), (4, 2, 0), (5, 3, 1), (7, 2, 0)):
        a = normal(rng, 2, *size, 3)
        blurred = blur_pool(a, k, stride, padding, offset)
        x = normal(rng, *blurred.shape)
        y = blur_upsample(x, k, stride, padding, offset, size=size, implementation=implementation)
        assert y.shape == a.shape
        one, other = np.vdot(blurred, x), np.vdot(a, y) / stride ** len(size)
        assert abs(one - other) < 1e-6 * np.linalg.norm(a) * np.linalg.norm(x)


@pytest.mark.parametrize("stride", [(1, 2), (3, 2)])
def test_options_of_each_axis_are_those_of_blur_pool(stride, rng):
    a = normal(rng, 1, 7, 9, 2)
    blur = jax.jit(lambda a: blur_pool(a, (3, 4), stride))
    x = blur(a)
    expected = jax.linear_transpose(blur, a)(x)[0]
    y = blur_upsample(x, (3, 4), stride, size=(7, 9), gain=1)
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("k", range(1, 8))
def test_it_stuffs_zeros_blurs_and_multiplies_by_the_stride(k, rng):
    """Compares with NumPy's convolution on a circle."""
    x = rng.standard_normal(8)
    stuffed = np.zeros(24)
    stuffed[::3] = 3 * x
    expected = np.zeros(24)
    for tap, weight in enumerate(binomial_taps(k)):
        expected += weight * np.roll(stuffed, tap - (k - 1) // 2)
    y = blur_upsample(jnp.asarray(x, jnp.float32)[None, :, None], k, 3, "circular")
    np.testing.assert_allclose(y[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("k", range(2, 8))
def test_a_constant_stays_one_away_from_the_border(k, padding):
    y = blur_upsample(jnp.full((1, 10, 9, 2), 2.5), k, 2, padding)
    inner = y if padding == "circular" else y[:, 4:-4, 4:-4]
    np.testing.assert_allclose(inner, 2.5, rtol=1e-6)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("k", "stride"), [(2, 2), (4, 2), (5, 2), (4, 3), (7, 4)])
def test_with_the_constant_gain_it_stays_one_everywhere(k, stride, padding):
    size = (5 * stride - 1, 6 * stride)
    x = jnp.full((1, 5, 6, 2), 2.5)
    y = blur_upsample(x, k, stride, padding, size=size, gain="constant")
    assert y.shape == (1, *size, 2)
    np.testing.assert_allclose(y, 2.5, rtol=1e-6)


@pytest.mark.parametrize("gain", ["stride", "constant"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_implementations_are_equal_forward_and_gradient(dtype, gain, rng):
    x = jnp.asarray(rng.standard_normal((2, 5, 4, 3)), dtype)
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-5  # of numbers up to 4

    def both(implementation):
        def upsample(x):
            options = {"size": (9, 8), "gain": gain, "implementation": implementation}
            return blur_upsample(x, 4, 2, **options)

        y, gradient = jax.vjp(upsample, x)
        return y, *gradient(jnp.cos(y))

    for a, b in zip(jax.jit(both, static_argnums=0)("gather"), both("conv"), strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_its_gradient_is_blur_pool(rng):
    x, a = normal(rng, 1, 5, 4, 3), normal(rng, 1, 10, 8, 3)
    gradient = jax.grad(lambda x: jnp.vdot(blur_upsample(x), a))(x)
    np.testing.assert_allclose(gradient, 4 * blur_pool(a), atol=1e-6)
    check_grads(jax.jit(blur_upsample), (x,), order=2, eps=1e-2, atol=2e-2, rtol=2e-2)


def test_it_batches_under_vmap(rng):
    x = normal(rng, 3, 2, 5, 4, 3)
    expected = jnp.stack([blur_upsample(image) for image in x])
    np.testing.assert_allclose(jax.vmap(blur_upsample)(x), expected, atol=1e-6)


def test_images_are_periodic_within_circular_padding(rng):
    x = normal(rng, 1, 6, 6, 2)
    with ops.circular_padding():
        y = blur_upsample(x)
        moved = blur_upsample(jnp.roll(x, 1, 1))
    np.testing.assert_array_equal(y, blur_upsample(x, padding="circular"))
    np.testing.assert_allclose(moved, jnp.roll(y, 2, 1), atol=1e-6)


def test_the_layer_is_the_function_and_has_no_variables(rng):
    x = normal(rng, 1, 5, 4, 2)
    layer = BlurUpsample(np.int64(3), gain="constant")
    assert not jax.tree.leaves(nnx.state(layer))
    expected = blur_upsample(x, 3, size=(9, 7), gain="constant")
    np.testing.assert_array_equal(layer(x, (9, 7)), expected)
    assert layer(x).shape == (1, 10, 8, 2)


def test_every_size_that_blur_pool_takes_there_is_accepted_and_no_other():
    for stride, offset, n in itertools.product((1, 2, 3), (0, 1), range(4, 14)):
        options = {"filter_size": 3, "stride": stride, "pad_offset": offset}
        x = jax.eval_shape(partial(blur_pool, **options), jnp.ones((1, n, 1)))
        there = partial(blur_upsample, **options, size=n)
        assert jax.eval_shape(there, x).shape[1] == n
        m, beyond = x.shape[1], partial(blur_upsample, **options, size=n + stride)
        with pytest.raises(InputError, match=rf"\({n + stride},\) is not possible for \({m},\)"):
            jax.eval_shape(beyond, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (8, 8, 8)}, "3 entries for 2 spatial axes"),
        ({"size": 8.0}, "size must be an integer"),
        ({"size": 6}, r"with stride 2 and pad_offset 0, 4 values become 7 to 8 pixels"),
        ({"gain": "unit"}, "gain must be stride, constant or a number, got 'unit'"),
        ({"gain": None}, "gain must be a number"),
        ({"gain": "constant", "filter_size": 1}, "some have none; give a filter_size of at least"),
        ({"filter_size": 20}, "too small: reflect padding"),
        ({"implementation": "fast"}, "must be one of conv, gather, matmul; got 'fast'"),
        ({"stride": 0}, "stride must be an integer of at least 1"),
    ],
)
def test_a_wrong_option_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        blur_upsample(jnp.ones((1, 4, 4, 1)), **arguments)
    with pytest.raises(InputError, match="floating point, got int32"):
        blur_upsample(jnp.ones((1, 4, 4, 1), jnp.int32))
