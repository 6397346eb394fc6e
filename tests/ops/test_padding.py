"""The context `circular_padding` with every operation that pads."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax.nn.layers import conv2d
from aa_flax.ops import blur_pool, circular_padding, max_pool


def shifted_maps(layer, x, stride):
    """Returns a layer's maps of an image, and of the image rolled by the stride."""
    with circular_padding():
        still, moved = layer(x), layer(jnp.roll(x, (stride, -2 * stride), (1, 2)))
    assert still.shape[1:3] == (x.shape[1] // stride, x.shape[2] // stride)
    return np.roll(np.asarray(still), (1, -2), (1, 2)), np.asarray(moved)


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, 2, 0), (2, 1, 0), (3, 2, 1), (3, 2, 0)]
)
def test_a_circular_max_pool_commutes_with_shifts_by_its_stride(rng, window, stride, padding):
    x = jnp.asarray(rng.standard_normal((1, 12, 16, 3), np.float32))
    np.testing.assert_array_equal(
        *shifted_maps(lambda x: max_pool(x, window, stride=stride, padding=padding), x, stride)
    )


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation", "groups"),
    [(3, 1, 1, 1, 1), (3, 2, 1, 1, 4), (1, 2, 0, 1, 1), (11, 4, 2, 1, 1), (3, 1, 2, 2, 2)],
)
def test_a_circular_convolution_commutes_with_shifts_by_its_stride(
    rng, size, stride, padding, dilation, groups
):
    x = jnp.asarray(rng.standard_normal((1, 12, 16, 4), np.float32))
    layer = conv2d(
        4,
        8,
        size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        rngs=nnx.Rngs(0),
    )
    np.testing.assert_allclose(*shifted_maps(layer, x, stride), atol=1e-5)


def test_circular_padding_acts_on_blur_pool_and_ends_with_its_block(rng):
    x = jnp.asarray(rng.standard_normal((1, 8, 8, 2), np.float32))
    np.testing.assert_allclose(*shifted_maps(lambda x: blur_pool(x, 3), x, 2), atol=1e-6)
    assert (blur_pool(x, 3) != blur_pool(x, 3, padding="circular")).any()
