"""3x3 convolutions by Winograd's algorithm, compared with their definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import aa_flax
from aa_flax import ops
from aa_flax.ops.cpu import winograd
from aa_flax.ops.cpu.convolution import dense_conv
from aa_flax.ops.cpu.depthwise import Window
from aa_flax.ops.dispatch import Multilinear, Static, apply
from tests.sweeps import slow_but

ONE = ((1, 1), (1, 1))
# Image and padding: even and odd sizes, and every padding that differs in the gradient.
CASES = {
    "even": ((2, 6, 4, 5), ONE),
    "odd": ((2, 5, 7, 5), ONE),
    "unpadded": ((2, 5, 6, 5), ((0, 0), (0, 0))),
    "uneven padding": ((1, 4, 5, 5), ((2, 0), (1, 2))),
    "one window": ((1, 3, 3, 5), ((0, 0), (0, 0))),
}


def window(padding) -> Window:
    return Window((3, 3), (1, 1), padding, (1, 1))


def definition(padding):
    return Static(
        lax.conv_general_dilated,
        padding=padding,
        window_strides=(1, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def operands(image, outputs: int = 3):
    draw = np.random.default_rng(0)
    shapes = image, (3, 3, image[-1], outputs)
    return [jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes]


def both(function, padding):
    """Returns `function` of the fast convolution, and of the definition."""
    conv = definition(padding)
    kernels = {"cpu": winograd.winograd_conv(window(padding))}
    fast = partial(apply, Multilinear(conv), kernels)
    return jax.jit(partial(function, fast)), jax.jit(partial(function, conv))


def derivatives(conv, x, kernel):
    forward = jax.jvp(conv, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))
    return forward, jax.grad(lambda *a: jnp.sin(conv(*a)).sum(), (0, 1))(x, kernel)


def assert_agree(results, expected, tolerance=1e-5):
    for a, b in zip(*map(jax.tree.leaves, (results, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", slow_but(("odd", "uneven padding"), CASES))
def test_values_and_derivatives_are_the_definitions(name):
    image, padding = CASES[name]
    fast, slow = both(derivatives, padding)
    assert_agree(fast(*operands(image)), slow(*operands(image)))


@pytest.mark.parametrize("numbers", slow_but([360], [1, 120, 360]))
def test_images_can_be_taken_a_few_at_a_time(monkeypatch, numbers):
    monkeypatch.setattr(winograd, "_VALUES", numbers)  # parts of five images: one, one and three
    fast, slow = both(derivatives, ONE)
    arrays = operands((5, 4, 6, 5))
    assert_agree(fast(*arrays), slow(*arrays))


@pytest.mark.parametrize("before", slow_but([1], [0, 1, 2]))
@pytest.mark.parametrize(("numbers", "rows"), [(7, 1), pytest.param(13, 2, marks=pytest.mark.slow)])
def test_large_images_are_computed_in_strips(monkeypatch, numbers, rows, before):
    monkeypatch.setattr(winograd, "_VALUES", numbers)
    x, kernel = operands((2, 6, 5, 5))
    padding = ((before, 2 - before), (1, 1))
    assert winograd._strips(x, padding, channels=5) == 6 // rows
    fast, slow = both(derivatives, padding)
    assert_agree(fast(x, kernel), slow(x, kernel))


def test_gradients_of_each_image_and_their_derivatives():
    def gradients(conv, x, kernel):
        each = jax.vmap(jax.grad(lambda k, x: jnp.sin(conv(x, k)).sum()), (None, 0))
        return jax.jvp(partial(each, kernel), (x[:, None],), (jnp.cos(x[:, None]),))

    fast, slow = both(gradients, ONE)
    arrays = operands((2, 5, 4, 3))
    assert_agree(fast(*arrays), slow(*arrays))


def test_bfloat16_is_computed_in_float32_and_rounded_once():
    fast, _ = both(derivatives, ONE)
    halves = [x.astype(jnp.bfloat16) for x in operands((2, 6, 5, 16), 8)]
    (value, tangent), gradients = fast(*halves)
    wide = [x.astype(jnp.float32) for x in halves]
    tangents = [jnp.cos(x).astype(jnp.float32) for x in halves]
    expected, expected_tangent = jax.jvp(definition(ONE), wide, tangents)
    cotangent = jnp.cos(value).astype(jnp.float32)  # rounded, as in a model
    expected_gradients = jax.vjp(definition(ONE), *wide)[1](cotangent)
    pairs = zip((value, *gradients), (expected, *expected_gradients), strict=True)
    for result, reference in pairs:
        assert result.dtype == jnp.bfloat16
        # Half a unit in the last place of each term, and float32's rounding.
        bound = 2**-8 * jnp.abs(reference) + 1e-5 * jnp.abs(reference).max()
        assert (jnp.abs(result.astype(jnp.float32) - reference) <= bound).all()
    assert_agree(tangent.astype(jnp.float32), expected_tangent, 2**-7)  # a sum of two


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_convolutions_that_are_large_enough_take_it(monkeypatch, dtype):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    x, kernel = (a.astype(dtype) for a in operands((4, 28, 28, 160), 160))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, kernel)]
    form = dense_conv(definition(ONE), window(ONE), *shapes)
    assert form == winograd.winograd_conv(window(ONE))
    conv = partial(ops.conv_general_dilated, strides=(1, 1), padding=ONE)
    results = (f(x, kernel).astype(jnp.float32) for f in (conv, definition(ONE)))
    assert_agree(*results, 1e-5 if dtype == jnp.float32 else 2**-8)


@pytest.mark.slow
def test_a_model_whose_convolutions_all_take_it_has_the_same_logits(monkeypatch):
    def takes(window, x, kernel):
        return window.taps == (3, 3) and window.strides == (1, 1)

    monkeypatch.setattr("aa_flax.ops.cpu.convolution.gains_by_winograd", takes)
    model = aa_flax.create_model("resnet18_lpf4", num_classes=3)
    model.eval()
    graphdef, state = nnx.split(model)
    images = jnp.asarray(np.random.default_rng(0).random((2, 48, 48, 3)), jnp.float32)
    fast = jax.jit(lambda x: nnx.merge(graphdef, state)(x)).lower(images)
    assert fast.as_text().count("stablehlo.while") > 12
    with ops.definitions():
        expected = jax.jit(lambda x: nnx.merge(graphdef, state)(x))(images)
    assert_agree(fast.compile()(images), expected)


def test_a_batch_that_may_lie_on_several_devices_does_not(monkeypatch):
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 28, 28, 160), (3, 3, 160, 160))]
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert winograd.gains_by_winograd(window(ONE), *arrays)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not winograd.gains_by_winograd(window(ONE), *arrays)


def test_what_fits_into_a_cache_whole_is_not_cut():
    wanted = {(56, 64): 1, (224, 64): 2, (448, 64): 7, (223, 64): None}
    for (size, channels), strips in wanted.items():
        image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
        assert winograd._strips(image, ONE, channels) == strips
    low = jax.ShapeDtypeStruct((1, 2, 20_000, 64), jnp.float32)  # a strip would read three rows
    assert winograd._strips(low, ONE, 64) is None


@pytest.mark.parametrize(
    ("image", "outputs", "options"),
    [
        ((4, 28, 28, 160), 31, {}),
        ((1, 14, 14, 640), 640, {}),
        ((1, 223, 223, 64), 64, {}),
        ((4, 28, 28, 160), 160, {"strides": (2, 2)}),
        ((4, 28, 28, 160), 160, {"dilation": (2, 2)}),
        ((4, 28, 28, 160), 160, {"padding": ((3, 3), (3, 3))}),
        ((4, 28, 28, 160), 160, {"taps": (5, 5)}),
        ((4, 28, 28, 160), 160, {"dtype": jnp.float16}),
    ],
)
def test_others_do_not(image, outputs, options, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    dtype = options.pop("dtype", jnp.float32)
    moved = window(ONE)._replace(**options)
    shapes = image, (*moved.taps, image[-1], outputs)
    assert not winograd.gains_by_winograd(moved, *(jax.ShapeDtypeStruct(s, dtype) for s in shapes))
