"""Transformed models are more consistent under shifts."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from aa_flax import antialias

RNG = np.random.default_rng(0)
K1, K2, K3 = (
    RNG.standard_normal(s).astype(np.float32) / 3
    for s in ((3, 3, 4, 8), (3, 3, 8, 8), (1, 1, 8, 8))
)
X = jnp.asarray(RNG.standard_normal((2, 32, 32, 4)), jnp.float32)


def wrapped(x, before, after):
    return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), mode="wrap")


def conv(x, kernel, stride):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def features(x):
    """A model with strides of 2 in a convolution, a max pool, a 1x1 convolution and an average."""
    x = jax.nn.relu(conv(wrapped(x, 1, 1), K1, 2))
    x = lax.reduce_window(wrapped(x, 0, 1), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.silu(conv(wrapped(x, 1, 1), K2, 1)) + x
    x = jax.nn.relu(conv(x, K3, 2))
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return jnp.square(x).mean((1, 2))


circular = jax.jit(antialias(features, 3, padding="circular"))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1), st.integers(0, 1))
def test_circular_shifts_by_the_total_stride_leave_pooled_features(down, right):
    moved = jnp.roll(X, (16 * down, 16 * right), (1, 2))
    np.testing.assert_allclose(circular(moved), circular(X), atol=1e-5)


def test_smaller_shifts_change_less_than_without_blurs():
    def change(f):
        return float(
            sum(jnp.abs(f(jnp.roll(X, (i, i), (1, 2))) - f(X)).mean() for i in range(1, 8))
            / jnp.abs(f(X)).mean()
        )

    assert change(circular) < 0.7 * change(jax.jit(features))
