import itertools
from functools import partial

import antialiased_cnns
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from aa_flax import BlurPool, InputError, MaxBlurPool, blur_pool, blur_upsample
from aa_flax.ops.blur import binomial_taps, filter_taps
from tests.sweeps import slow_but

REFERENCE_PADDING = {"reflect": "reflect", "replicate": "repl", "zero": "zero"}
PADDINGS = ("reflect", "replicate", "zero", "circular")
SLOW = pytest.mark.slow


def reference_blur(x: np.ndarray, k: int, stride: int, padding: str, pad_offset: int = 0):
    """Applies the original's layer to a channels-last array."""
    layer = antialiased_cnns.BlurPool if x.ndim == 4 else antialiased_cnns.BlurPool1D
    blur = layer(x.shape[-1], REFERENCE_PADDING[padding], k, stride, pad_offset)
    return np.moveaxis(blur(torch.tensor(np.moveaxis(x, -1, 1))).numpy(), 1, -1)


def blur_all(x: np.ndarray, padding, implementation) -> dict[tuple[int, int], np.ndarray]:
    """Returns results by filter size and stride, compiled together."""
    options = list(itertools.product(range(1, 8), range(1, 5)))

    @jax.jit
    def blur(x):
        return [blur_pool(x, *o, padding, implementation=implementation) for o in options]

    return dict(zip(options, blur(x), strict=True))


@pytest.mark.parametrize(
    "size",
    slow_but([(4, 11), (13,)], [(8, 8), (7, 7), (4, 11), (13,), (9, 12), (8,)]),
)
@pytest.mark.parametrize("padding", REFERENCE_PADDING)
def test_equals_the_original(size, padding, rng):
    x = rng.standard_normal((2, *size, 3), np.float32)
    for implementation in ("conv", None):  # the latter is gather, on CPU
        for (k, stride), y in blur_all(x, padding, implementation).items():
            expected = reference_blur(x, k, stride, padding)
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_pad_offset_equals_the_original(k, rng):
    x = rng.standard_normal((1, 9, 8, 2), np.float32)
    expected = reference_blur(x, k, 2, "reflect", pad_offset=1)
    y = blur_pool(jnp.asarray(x), k, pad_offset=1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", slow_but([(8, 11)], [(9,), (8, 11), (7, 6, 5)]))
@pytest.mark.parametrize(
    ("padding", "dtype"),
    [
        *((padding, jnp.float32) for padding in PADDINGS),
        ("reflect", jnp.bfloat16),
        *(pytest.param(padding, jnp.bfloat16, marks=SLOW) for padding in PADDINGS[1:]),
    ],
)
def test_gather_and_matmul_equal_conv_forward_and_gradient(dtype, size, padding, rng):
    x = jnp.asarray(rng.standard_normal((2, *size, 3)), dtype)
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-7  # bfloat16: the sum rounds differently
    for k, stride in ((1, 2), (2, 2), (4, 2), (5, 3), (7, 1), (9, 2)):
        if max(k // 2 + 1, 2) > min(size):
            continue

        @partial(jax.jit, static_argnums=0)
        def both(implementation, k=k, stride=stride):
            def blur(x):
                return blur_pool(x, k, stride, padding, implementation=implementation)

            y, gradient = jax.vjp(blur, x)
            return y, *gradient(jnp.cos(y))

        for implementation in ("gather", "matmul"):
            for a, b in zip(both(implementation), both("conv"), strict=True):
                assert a.dtype == b.dtype == dtype
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_gather_batches_under_vmap(rng):
    x = jnp.asarray(rng.standard_normal((4, 2, 9, 8, 3)), jnp.float32)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(blur_pool(x) ** 2))(x)

    expected = jnp.stack([gradient(image) for image in x])
    np.testing.assert_allclose(jax.vmap(gradient)(x), expected, rtol=1e-6)


@pytest.mark.parametrize("k", range(1, 12))
def test_output_length_is_ceil_of_size_over_stride(k):
    for size, stride in itertools.product((12, 13, 17), range(1, 6)):
        x = jax.ShapeDtypeStruct((1, size, 1), jnp.float32)
        y = jax.eval_shape(partial(blur_pool, filter_size=k, stride=stride), x)
        assert y.shape[1] == -(-size // stride)


@pytest.mark.parametrize("padding", PADDINGS)
def test_constant_map_is_preserved_up_to_the_border(padding):
    y = blur_pool(jnp.full((1, 16, 16, 2), 3.0), 5, 2, padding)
    inner = y if padding != "zero" else y[:, 1:-1, 1:-1]
    np.testing.assert_allclose(inner, 3.0, rtol=1e-6)


@pytest.mark.parametrize("stride", range(1, 20))
def test_the_filter_that_fits_a_stride_is_three_means_of_its_length(stride):
    taps = np.array(filter_taps("auto", stride))
    box = np.ones(stride) / stride
    np.testing.assert_allclose(taps, np.convolve(box, np.convolve(box, box)), atol=1e-15)
    np.testing.assert_allclose(taps.sum(), 1)
    x = np.exp(1j * np.pi * np.arange(40 * stride) / stride)  # the new Nyquist frequency
    kept = np.convolve(x, taps, "valid")
    gain = (stride * np.sin(np.pi / (2 * stride))) ** -3
    np.testing.assert_allclose(np.abs(kept).max(), gain, atol=1e-12)
    assert stride == 1 or gain < 0.36


def test_auto_is_the_papers_filter_at_stride_2_and_none_at_stride_1(rng):
    x = jnp.asarray(rng.standard_normal((2, 12, 16, 3)), jnp.float32)
    np.testing.assert_array_equal(blur_pool(x, "auto", (1, 2)), blur_pool(x, (1, 4), (1, 2)))
    np.testing.assert_array_equal(BlurPool("auto")(x), BlurPool(4)(x))
    assert BlurPool("auto", 16)(jnp.ones((1, 64, 64, 1))).shape == (1, 4, 4, 1)
    y = blur_upsample(blur_pool(x, "auto", 4), "auto", 4)
    assert y.shape == x.shape


@pytest.mark.parametrize(("k", "stride", "gain"), [(4, 3, 65), (4, 4, 79), (1, 3, 100)])
def test_a_filter_that_passes_most_of_what_aliases_is_warned_of(k, stride, gain):
    message = rf"filter_size={k} passes {gain}% of the Nyquist .* stride {stride}.*'auto' fits"
    with pytest.warns(UserWarning, match=message):
        blur_pool(jnp.ones((1, 16, 16, 1)), k, stride)


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_ramp_lands_where_the_taps_are_centred(k, stride):
    y = blur_pool(jnp.arange(40.0)[None, :, None], k, stride)[0, :, 0]
    middle = slice(4, -4)  # away from the border, where a reflected ramp is no ramp
    expected = stride * jnp.arange(len(y)) + (0 if k % 2 else 0.5)
    np.testing.assert_allclose(y[middle], expected[middle], rtol=1e-6)


def test_dense_filter_equals_separable_filter(rng):
    x = rng.standard_normal((10, 12))
    taps = binomial_taps(5)
    dense = np.zeros((6, 8))
    for i, j in np.ndindex(dense.shape):
        dense[i, j] = np.sum(np.outer(taps, taps) * x[i : i + 5, j : j + 5])
    y = blur_pool(jnp.asarray(x, jnp.float32)[None, ..., None], 5, 1)[0, 2:-2, 2:-2, 0]
    np.testing.assert_allclose(y, dense, rtol=1e-5, atol=1e-6)


def test_taps_are_rows_of_pascals_triangle():
    np.testing.assert_array_equal(binomial_taps(4), np.array([1, 3, 3, 1]) / 8)
    np.testing.assert_array_equal(binomial_taps(7) * 64, [1, 6, 15, 20, 15, 6, 1])


def test_size_and_stride_of_each_axis(rng):
    x = jnp.asarray(rng.standard_normal((2, 9, 12, 3)), jnp.float32)
    y = blur_pool(x, (3, 4), (1, 2))
    rows = jax.vmap(lambda column: blur_pool(column, 3, 1), in_axes=2, out_axes=2)(x)
    expected = jax.vmap(lambda row: blur_pool(row, 4, 2), in_axes=1, out_axes=1)(rows)
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_with_circular_padding_shifts_by_the_stride_commute(rng):
    x = jnp.asarray(rng.standard_normal((1, 12, 12, 2)), jnp.float32)
    shifted = blur_pool(jnp.roll(x, (4, 2), (1, 2)), padding="circular")
    expected = jnp.roll(blur_pool(x, padding="circular"), (2, 1), (1, 2))
    np.testing.assert_allclose(shifted, expected, atol=1e-6)


def test_the_layer_has_no_variables():
    assert not jax.tree.leaves(nnx.state(BlurPool()))


def test_max_blur_pool_is_a_dense_maximum_then_blur(rng):
    x = rng.standard_normal((2, 9, 11, 3), np.float32)
    maximum = torch.nn.functional.max_pool2d(torch.tensor(x).permute(0, 3, 1, 2), 3, 1, 1)
    expected = antialiased_cnns.BlurPool(3)(maximum).permute(0, 2, 3, 1)
    y = MaxBlurPool(3, window_padding=1)(jnp.asarray(x))
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize(("k", "least"), [(2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_too_small_an_input_names_its_size_and_the_least(k, least):
    blur_pool(jnp.ones((1, least, least, 1)), k)
    with pytest.raises(ValueError, match=rf"\({least - 1}, 9\).*at least {least} pixels"):
        blur_pool(jnp.ones((1, least - 1, 9, 1)), k)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter_size": 0}, "filter_size must be an integer of at least 1, got 0"),
        ({"stride": 0}, "stride must be an integer of at least 1"),
        ({"pad_offset": -1}, "pad_offset must be an integer of at least 0"),
        ({"padding": "mirror"}, "reflect, replicate, zero, circular; got 'mirror'"),
        ({"stride": (2, 2, 2)}, "3 entries for 2 spatial axes"),
        ({"implementation": "fast"}, "must be one of conv, gather, matmul; got 'fast'"),
    ],
)
def test_a_wrong_option_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        blur_pool(jnp.ones((1, 8, 8, 1)), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter_size": True}, "filter_size must be an integer of at least [01], got True"),
        ({"filter_size": np.True_}, "filter_size must be an integer of at least [01], got"),
        ({"filter_size": 4.0}, "filter_size must be an integer of at least [01], got 4.0"),
        ({"filter_size": "4"}, "filter_size must be an integer of at least [01], got '4'"),
        ({"filter_size": b"4"}, "filter_size must be an integer of at least [01], got b'4'"),
        ({"filter_size": None}, "filter_size must be an integer of at least [01], got None"),
        ({"filter_size": (3, 4.5)}, "filter_size must be an integer of at least [01], got 4.5"),
        ({"filter_size": (0, 4)}, "filter_size must be an integer of at least 1, got 0"),
        ({"stride": 2.0}, "stride must be an integer of at least [01], got 2.0"),
        ({"stride": [2, True]}, "stride must be an integer of at least [01], got True"),
        ({"stride": np.array(2.0)}, "stride must be an integer"),
        ({"pad_offset": (1, 1)}, r"pad_offset must be an integer of at least [01], got \(1, 1\)"),
        ({"pad_offset": False}, "pad_offset must be an integer of at least [01], got False"),
        ({"padding": None}, "reflect, replicate, zero, circular; got None"),
    ],
)
def test_what_is_no_integer_is_refused_by_function_and_layer(arguments, message):
    for use in (lambda **options: blur_pool(jnp.ones((1, 8, 8, 1)), **options), BlurPool):
        with pytest.raises(InputError, match=message):
            use(**arguments)


@pytest.mark.parametrize(
    ("arguments", "named", "got"),
    [
        ((64, 4), {}, "filter_size=64"),
        ((64,), {"filt_size": 4}, "filt_size"),
        ((), {"channels": 64, "filt_size": 4, "stride": 2}, "channels, filt_size"),
        (((3, 32), 4), {}, r"filter_size=\(3, 32\)"),
    ],
)
def test_the_originals_arguments_are_refused(arguments, named, got):
    with pytest.raises(InputError, match=f"no channels, .*; got {got}; write BlurPool"):
        BlurPool(*arguments, **named)


@pytest.mark.parametrize("integer", [np.int64, np.uint8, np.array, jnp.int32])
def test_integers_of_any_kind_are_accepted(integer, rng):
    x = jnp.asarray(rng.standard_normal((1, 9, 8, 2)), jnp.float32)
    numbers = {"filter_size": integer(3), "stride": integer(2), "pad_offset": integer(1)}
    expected = blur_pool(x, 3, 2, pad_offset=1)
    np.testing.assert_array_equal(blur_pool(x, **numbers), expected)
    layer = BlurPool(**numbers)
    np.testing.assert_array_equal(layer(x), expected)
    assert type(layer.filter_size) is type(layer.stride) is int


def test_numpy_arrays_are_one_integer_for_each_axis(rng):
    x = jnp.asarray(rng.standard_normal((1, 9, 8, 2)), jnp.float32)
    expected = blur_pool(x, (3, 4), (1, 2))
    np.testing.assert_array_equal(blur_pool(x, np.array([3, 4]), np.array([1, 2])), expected)
    assert BlurPool(np.array([3, 4]), [1, 2]).filter_size == (3, 4)


def test_very_long_filters_have_a_sum_of_1():
    assert binomial_taps(2001).sum() == pytest.approx(1)


def test_integers_and_unbatched_images_are_refused():
    with pytest.raises(ValueError, match="floating point, got uint8"):
        blur_pool(jnp.ones((1, 8, 8, 1), jnp.uint8))
    with pytest.raises(ValueError, match="1 to 3 spatial axes"):
        blur_pool(jnp.ones((8, 8)))
