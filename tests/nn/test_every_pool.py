"""Common properties of all registered pools."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax.ops import circular_padding
from aa_flax.pools import list_pools, make_pool, pool_factory, subsample

# One pool of each name that ends in a number.
KINDS = {re.sub(r"\d+$", "", name): name for name in list_pools()}
every_kind = pytest.mark.parametrize("name", KINDS.values())


def made(name, stride=2, features=3):
    pool = make_pool(pool_factory(None, name), stride, features=features, rngs=nnx.Rngs(0))
    pool.eval()
    return pool


@pytest.mark.parametrize("stride", [2, 3])
@every_kind
def test_odd_sizes_have_the_ceiling_of_their_part(name, stride, rng):
    x = jnp.asarray(rng.standard_normal((2, 9, 13, 3)), jnp.float32)
    assert subsample(made(name, stride), x).shape == (2, -(-9 // stride), -(-13 // stride), 3)


@every_kind
def test_compiled_it_is_the_same_in_bfloat16_nearly_and_gradients_are_finite(name, rng):
    x = jnp.asarray(rng.standard_normal((2, 8, 10, 3)), jnp.float32)
    pool = made(name)
    graph, state = nnx.split(pool)

    @jax.jit
    def run(state, x):
        y, pull_back = jax.vjp(lambda s, x: subsample(nnx.merge(graph, s), x), state, x)
        return y, pull_back(y)

    y, gradients = run(state, x)
    np.testing.assert_allclose(y, subsample(pool, x), atol=1e-5)
    for gradient in jax.tree.leaves(gradients):
        assert gradient.dtype == jax.dtypes.float0 or jnp.isfinite(gradient).all()
    half, _ = run(state, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    if name.startswith(("aps", "lps")):  # rounding may change the phase
        assert jnp.isfinite(half).all()
    else:
        np.testing.assert_allclose(half, y, atol=0.05)


def test_gradients_of_a_learned_pool_reach_its_weights(rng):
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    for name in ("learned3", "lps", "lps_softmax"):
        pool = made(name)
        pool.train()
        graph, params, rest = nnx.split(pool, nnx.Param, ...)

        def loss(params, graph=graph, rest=rest):
            return jnp.sin(subsample(nnx.merge(graph, params, rest, copy=True), x)).sum()

        gradients = jax.jit(jax.grad(loss))(params)
        for gradient in jax.tree.leaves(gradients):
            assert jnp.isfinite(gradient).all()
            assert jnp.abs(gradient).max() > 0


@every_kind
def test_a_circular_shift_by_the_stride_shifts_the_result(name, rng):
    x = jnp.asarray(rng.standard_normal((2, 8, 12, 3)), jnp.float32)
    pool = made(name)
    with circular_padding():
        y, moved = subsample(pool, x), subsample(pool, jnp.roll(x, (2, 4), (1, 2)))
    np.testing.assert_allclose(moved, jnp.roll(y, (1, 2), (1, 2)), atol=1e-5)
