"""The replacement of each operation that subsamples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aa_flax import antialias, blur_pool
from aa_flax.ops import max_pool


def arrays(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


X = arrays(2, 9, 12, 4)


def conv(x, kernel, strides, padding="SAME", layout="NHWC", **options):
    spatial = layout.strip("NC")
    numbers = (layout, f"{spatial}IO", layout)
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=numbers, **options
    )


def max_window(x, size, stride, padding="VALID"):
    sizes, strides = ((1, n, n, 1) for n in (size, stride))
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, padding)


def sum_window(x, size, stride, padding="VALID"):
    sizes, strides = ((1, n, n, 1) for n in (size, stride))
    return lax.reduce_window(x, 0.0, lax.add, sizes, strides, padding)


def split(x):
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c)


K3, K1, K5 = arrays(3, 3, 4, 6), arrays(1, 1, 4, 6), arrays(5, 5, 1, 4)
K6, K4, K16 = arrays(3, 3, 6, 6), arrays(4, 4), arrays(16, 16)
EVEN = arrays(2, 8, 12, 4)
PADS = ((1, 1), (1, 1))
SCALE = arrays(4)[:, None, None]

SITES = {
    "max pool": (lambda x: max_window(x, 3, 2), lambda x: blur_pool(max_pool(x, 3, stride=1)), X),
    "uneven padding": (
        lambda x: max_window(x, 2, 2, ((0, 0), (0, 1), (1, 0), (0, 0))),
        lambda x: blur_pool(max_window(x, 2, 1, ((0, 0), (0, 1), (1, 0), (0, 0)))),
        X,
    ),
    "1x1": (
        lambda x: jax.nn.relu(conv(x, K1, (2, 2))),
        lambda x: jax.nn.relu(conv(blur_pool(x), K1, (1, 1))),
        X,
    ),
    "valid": (
        lambda x: jnp.tanh(conv(x, K3, (2, 2), "VALID")),
        lambda x: blur_pool(jnp.tanh(conv(x, K3, (1, 1), "VALID"))),
        X,
    ),
    "dilated": (
        lambda x: jax.nn.silu(conv(x, K3, (2, 2), PADS, rhs_dilation=(2, 2))),
        lambda x: blur_pool(jax.nn.silu(conv(x, K3, (1, 1), PADS, rhs_dilation=(2, 2)))),
        X,
    ),
    "depthwise": (
        lambda x: jnp.clip(conv(x, K5, (2, 2), "VALID", feature_group_count=4), 0, 1),
        lambda x: blur_pool(jnp.clip(conv(x, K5, (1, 1), "VALID", feature_group_count=4), 0, 1)),
        X,
    ),
    "one axis": (
        lambda x: jax.nn.gelu(conv(x, K3, (1, 2), PADS)),
        lambda x: blur_pool(jax.nn.gelu(conv(x, K3, (1, 1), PADS)), (1, 4), (1, 2)),
        X,
    ),
    "stride 3": (
        lambda x: jax.nn.elu(conv(x, K3, (3, 3), PADS)),
        lambda x: blur_pool(jax.nn.elu(conv(x, K3, (1, 1), PADS)), "auto", 3),
        X,
    ),
    **{
        name: (
            lambda x, f=f: f(conv(x, K3, (2, 2), PADS)),
            lambda x, f=f: blur_pool(f(conv(x, K3, (1, 1), PADS))),
            X,
        )
        for name, f in {
            "mish": jax.nn.mish,
            "log of a sigmoid": jax.nn.log_sigmoid,
            "sinc": jnp.sinc,
            "two maps": lambda y: jnp.logaddexp(y, y * y),
        }.items()
    },
    "sum of exponentials": (
        lambda x: jnp.logaddexp(conv(x, K3, (2, 2), PADS), conv(x * x, K3, (2, 2), PADS)),
        lambda x: blur_pool(
            jnp.logaddexp(conv(x, K3, (1, 1), PADS), conv(x * x, K3, (1, 1), PADS))
        ),
        X,
    ),
    "no nonlinearity": (
        lambda x: conv(x, K3, (2, 2), PADS).reshape(2, -1),
        lambda x: conv(blur_pool(x, stride=1), K3, (2, 2), PADS).reshape(2, -1),
        X,
    ),
    "normalised, then convolved": (
        lambda x: conv(jax.nn.standardize(conv(x, K3, (4, 4), PADS)), K6, (1, 1)),
        lambda x: conv(jax.nn.standardize(conv(smooth(x, 4), K3, (4, 4), PADS)), K6, (1, 1)),
        X,
    ),
    "activated on one path": (
        lambda x: (lambda y: conv(jax.nn.relu(y), K6, (1, 1)) + y)(conv(x, K3, (2, 2), PADS)),
        lambda x: (lambda y: conv(blur_pool(jax.nn.relu(y)), K6, (1, 1)) + blur_pool(y))(
            conv(x, K3, (1, 1), PADS)
        ),
        X,
    ),
    "several operations": (
        lambda x: (lambda y: y * jnp.minimum(jnp.maximum(y + 3, 0), 6) / 6)(
            conv(x, K3, (2, 2), PADS)
        ),
        lambda x: blur_pool(jax.nn.hard_swish(conv(x, K3, (1, 1), PADS))),
        X,
    ),
    "where": (
        lambda x: (lambda y: jnp.where(y > 0, y, 0.1 * y))(conv(x, K3, (2, 2), PADS)),
        lambda x: blur_pool(jax.nn.leaky_relu(conv(x, K3, (1, 1), PADS), 0.1)),
        X,
    ),
    "channels first": (
        lambda x: jax.nn.relu(SCALE * conv(x, K3[..., :4], (2, 2), PADS, "NCHW")),
        lambda x: jnp.moveaxis(
            blur_pool(
                jnp.moveaxis(jax.nn.relu(SCALE * conv(x, K3[..., :4], (1, 1), PADS, "NCHW")), 1, -1)
            ),
            -1,
            1,
        ),
        arrays(2, 4, 9, 12),
    ),
    "signal": (
        lambda x: jax.nn.relu(conv(x, arrays(3, 4, 6), (2,), "SAME", "NHC")),
        lambda x: blur_pool(jax.nn.relu(conv(x, arrays(3, 4, 6), (1,), ((0, 1),), "NHC"))),
        arrays(2, 8, 4),
    ),
    "volume": (
        lambda x: jax.nn.relu(conv(x, arrays(2, 2, 2, 4, 3), (2,) * 3, "VALID", "NDHWC")),
        lambda x: blur_pool(
            jax.nn.relu(conv(x, arrays(2, 2, 2, 4, 3), (1,) * 3, "VALID", "NDHWC"))
        ),
        arrays(1, 6, 7, 8, 4),
    ),
    "average pool": (lambda x: sum_window(x, 2, 2) / 4, lambda x: blur_pool(x[:, :8]), X),
    "counted average": (
        lambda x: sum_window(x, 3, 2, "SAME") / sum_window(jnp.ones_like(x), 3, 2, "SAME"),
        blur_pool,
        X,
    ),
    "reshaped average": (lambda x: split(x).mean((2, 4)), blur_pool, EVEN),
    "reshaped maximum": (
        lambda x: split(x).max((2, 4)),
        lambda x: blur_pool(max_pool(x, 2, stride=1)),
        EVEN,
    ),
    "slice": (lambda x: x[:, ::2, ::2], blur_pool, X),
    "slice taken twice": (
        lambda x: jnp.sin(x[:, ::2, ::2]) + x[:, ::2, ::2],
        lambda x: jnp.sin(blur_pool(x)) + blur_pool(x),
        X,
    ),
    "slice from 1": (lambda x: x[:, 1::2, 1::2], lambda x: blur_pool(x[:, 1:, 1:]), X),
    "layer normalisation": (
        lambda x: jax.nn.relu(jax.nn.standardize(conv(x, K3, (2, 2), PADS), axis=-1)),
        lambda x: blur_pool(jax.nn.relu(jax.nn.standardize(conv(x, K3, (1, 1), PADS), axis=-1))),
        X,
    ),
    "group normalisation": (
        lambda x: jax.nn.relu(groups_normalised(conv(x, K3, (2, 2), PADS))),
        lambda x: blur_pool(jax.nn.relu(groups_normalised(conv(x, K3, (1, 1), PADS)))),
        X,
    ),
    "sum of branches": (
        lambda x: jax.nn.relu(conv(x, K3, (2, 2), PADS) + conv(x * x, K3, (2, 2), PADS)),
        lambda x: blur_pool(jax.nn.relu(conv(x, K3, (1, 1), PADS) + conv(x * x, K3, (1, 1), PADS))),
        X,
    ),
    "sum with the shortcut": (
        lambda x: jax.nn.relu(conv(x, K3, (2, 2), PADS) + conv(x, K1, (2, 2))),
        lambda x: jax.nn.relu(
            conv(blur_pool(x, stride=1), K3, (2, 2), PADS) + conv(blur_pool(x), K1, (1, 1))
        ),
        X,
    ),
    "two uses": (
        lambda x: (lambda y: (y, conv(y, arrays(3, 3, 6, 2), (1, 1)), y.mean((1, 2))))(
            jax.nn.relu(conv(x, K3, (2, 2), PADS))
        ),
        lambda x: (lambda y: (y, conv(y, arrays(3, 3, 6, 2), (1, 1)), y.mean((1, 2))))(
            blur_pool(jax.nn.relu(conv(x, K3, (1, 1), PADS)))
        ),
        X,
    ),
}


def smooth(x, stride):
    """Applies the filter of a stride with stride 1."""
    box = np.ones(stride) / stride
    taps = np.convolve(np.convolve(box, box), box)
    widths = ((len(taps) - 1) // 2, len(taps) // 2)
    for axis in (1, 2):
        padded = jnp.pad(x, [widths if i == axis else (0, 0) for i in range(x.ndim)], "reflect")
        sections = (
            lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(len(taps))
        )
        x = sum(tap * section for tap, section in zip(taps, sections, strict=True))
    return x


def filtered(x, stride):
    """A blur of another package: a depthwise convolution with a constant kernel."""
    taps = jnp.array([1, 2, 1]) / 4
    kernel = jnp.tile(jnp.outer(taps, taps)[..., None, None], (1, 1, 1, x.shape[-1]))
    return conv(x, kernel, (stride, stride), PADS, feature_group_count=x.shape[-1])


def resized(x, method, antialias):
    return jax.image.resize(x, (2, 4, 4, 4), method, antialias=antialias)


def groups_normalised(x):
    n, h, w, c = x.shape
    groups = x.reshape(n, h, w, 3, c // 3)
    return jax.nn.standardize(groups, axis=(1, 2, 4)).reshape(x.shape)


@pytest.mark.parametrize("name", SITES)
def test_every_site_becomes_what_the_paper_puts_there(name):
    f, expected, x = SITES[name]
    found = jax.jit(antialias(f))(x)
    original = jax.eval_shape(f, x)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, original)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, jax.jit(expected)(x)
    )


ALONE = {
    "phases": (lambda x: jnp.concatenate([x[:, ::2, ::2], x[:, 1::2, 1::2]]), "keep what it drops"),
    "mean of phases": (
        lambda x: sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4,
        "rearrange, pool or filter it",
    ),
    "look-up": (lambda x: jnp.take(x, np.arange(0, 8, 2), axis=1), "a look-up by indices"),
    "look-ups": (lambda x: x[:, jnp.arange(0, 8, 2)][:, :, np.arange(0, 8, 2)], "a look-up"),
    "look-up in a grid": (lambda x: x[:, np.arange(0, 8, 2)[:, None], jnp.arange(0, 8, 3)], "look"),
    "nearest": (lambda x: resized(x, "nearest", False), "a nearest resize"),
    "linear": (lambda x: resized(x, "linear", False), "an interpolation that aliases"),
    "cubic": (lambda x: resized(x, "cubic", False), "an interpolation that aliases"),
    "linear, filtered": (lambda x: resized(x, "linear", True), "antialiased already"),
    "cubic, filtered": (lambda x: resized(x, "cubic", True), "antialiased already"),
    "signal by reshape": (
        lambda x: x[0].reshape(8, 4, 2, 4).max(2),
        "not known to be one of an image",
    ),
    "mean by reshape": (
        lambda x: x[0].reshape(8, 4, 2, 4).mean(2),
        "not known to be one of an image",
    ),
    "depthwise blur": (lambda x: filtered(x, 2), "antialiased already"),
    "slice of a blur": (lambda x: filtered(x, 1)[:, ::2, ::2], "antialiased already"),
    "BlurPool": (jax.jit(blur_pool), "antialiased already"),
    "in a loop": (lambda x: lax.map(lambda x: jnp.take(x, 2 * jnp.arange(4), 0), x), "a look-up"),
    "features": (lambda x: x[..., ::2], "not known to be those of images"),
    "integers": (lambda x: x.astype(int)[:, ::2, ::2], "no mean"),
    "whole map": (lambda x: sum_window(x, 8, 8) / 64, "mean of the whole map"),
    "wide average": (lambda x: sum_window(jnp.tile(x, (1, 2, 2, 1)), 7, 3) / 49, "a wider"),
    "patch merging": (lambda x: split(x).transpose(0, 1, 3, 4, 2, 5).reshape(2, 4, 4, 16), "drops"),
    "patches": (lambda x: split(x).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16) @ K16, "drops"),
    "pixel unshuffle": (
        lambda x: split(x).transpose(0, 5, 2, 4, 1, 3).reshape(2, 16, 4, 4),
        "drops",
    ),
    "minimum": (
        lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        "is not a known pool",
    ),
    "padded sum": (
        lambda x: sum_window(x, 3, 2, "SAME"),
        "divisor of its sum cannot be determined",
    ),
    "dilated input": (
        lambda x: conv(x, K3, (2, 2), PADS, lhs_dilation=(3, 3)),
        "its input is dilated",
    ),
    "few pixels": (lambda x: max_window(x[:, :3, :3], 2, 2), "needs at least 3 pixels"),
    "grey": (lambda x: conv(x[..., :1], K3[:, :, :1], (2, 2)), "fewer than min_channels"),
}


NOT_SITES = {
    "flip": lambda x: jnp.take(x, np.arange(8)[::-1], axis=1),
    "window": lambda x: jnp.take(x, np.arange(2, 6), axis=1),
    "look-up by values": lambda x: jnp.take(x, (x[0, :4, 0, 0] > 0).astype(int), axis=1),
    "larger": lambda x: jax.image.resize(x, (2, 16, 16, 4), "linear"),
    "larger, nearest": lambda x: jax.image.resize(x, (2, 16, 16, 4), "nearest"),
    "projection": lambda x: x @ np.eye(4, 2),
    "windows": lambda x: split(x).transpose(0, 1, 3, 2, 4, 5).reshape(32, 4, 4) @ K4,
    "depth to space": lambda x: (
        x.reshape(2, 8, 8, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, 1)
    ),
}


@pytest.mark.parametrize("name", NOT_SITES)
def test_operations_that_keep_all_pixels_have_no_row(name):
    assert not antialias.report(NOT_SITES[name], arrays(2, 8, 8, 4))


@pytest.mark.parametrize("taps", [[0, 1, 0], [-1, 0, 1]], ids=["delta", "derivative"])
def test_a_constant_kernel_that_passes_high_frequencies_is_antialiased(taps):
    kernel = jnp.tile(
        jnp.outer(jnp.array(taps, "float32"), jnp.ones(3))[..., None, None], (1, 1, 1, 4)
    )
    (row,) = antialias.report(lambda x: conv(x, kernel, (2, 2), PADS, feature_group_count=4), X)
    assert row.done == "blur with stride 1, then as it was"


@pytest.mark.parametrize("name", ALONE)
def test_sites_that_cannot_be_antialiased_are_left_alone_with_a_reason(name):
    f, reason = ALONE[name]
    x = arrays(2, 8, 8, 4)
    report = antialias.report(f, x)
    assert not report.antialiased
    assert all(reason in row.reason for row in report.left_alone)
    assert len(report) > 0
    with pytest.warns(UserWarning, match="antialias changes nothing in .*: each of its"):
        np.testing.assert_allclose(jax.jit(antialias(f))(x), jax.jit(f)(x), atol=1e-5)
