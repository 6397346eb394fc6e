import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aa_flax import InputError, runtime
from aa_flax.ops import conv_general_dilated

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
    ("size", "features", "kernel", "groups", "stride", "dilation"),
    [
        (9, (32, 32), 3, 8, 1, 1),  # groups of 4, several to a block
        (8, (24, 48), 3, 3, 2, 2),  # a last block that is not full; strided, dilated
        (6, (64, 64), 3, 2, 1, 1),  # groups wider than a block
        (2, (8, 16), 3, 1, 1, 1),  # output narrower than the kernel
        (3, (8, 16), 3, 1, 2, 1),
        (3, (8, 8), 3, 1, 1, 2),
    ],
)
def test_cpu_convolutions_equal_xlas_forward_and_gradient(
    size, features, kernel, groups, stride, dilation, rng
):
    x = rng.standard_normal((2, size, size + 1, features[0]), np.float32)
    weights = rng.standard_normal((kernel, kernel, features[0] // groups, features[1]), np.float32)

    def run(conv):
        def apply(x, weights):
            return conv(
                x,
                weights,
                (stride, stride),
                ((dilation, dilation), (dilation, dilation)),
                lhs_dilation=(1, 1),
                rhs_dilation=(dilation, dilation),
                dimension_numbers=NHWC,
                feature_group_count=groups,
            )

        y, gradients = jax.vjp(apply, x, weights)
        return y, *gradients(jnp.cos(y))

    for ours, native in zip(run(conv_general_dilated), run(lax.conv_general_dilated), strict=True):
        assert jnp.max(jnp.abs(ours - native)) <= 1e-5 * jnp.max(jnp.abs(native))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("features", "groups", "stride"), [(32, 32, 1), (32, 32, 2), (16, 4, 1), (16, 4, 2)]
)
def test_kernels_for_onednn_equal_the_definition(features, groups, stride, dtype, rng, monkeypatch):
    # Read at trace time; JAX has read its flags already.
    monkeypatch.setenv("XLA_FLAGS", runtime._ONEDNN_FLAGS)
    x = jnp.asarray(rng.standard_normal((2, 7, 8, features)), dtype)
    kernel = jnp.asarray(rng.standard_normal((3, 3, features // groups, features)), dtype)

    def loss(conv, x, kernel):
        pads = ((1, 1), (1, 1))
        options = {"dimension_numbers": NHWC, "feature_group_count": groups}
        y = conv(x, kernel, (stride, stride), pads, **options)
        return jnp.sum(y.astype(jnp.float32) ** 2), y

    def run(conv, *arrays):
        return jax.grad(loss, (1, 2), has_aux=True)(conv, *arrays)

    wide = (x.astype(jnp.float32), kernel.astype(jnp.float32))
    expected = jax.tree.leaves(run(lax.conv_general_dilated, *wide))
    for ours, native in zip(
        jax.tree.leaves(run(conv_general_dilated, x, kernel)), expected, strict=True
    ):
        assert ours.dtype == dtype
        bound = 1e-5 if dtype == jnp.float32 else 0.02
        assert jnp.max(jnp.abs(ours - native)) <= bound * jnp.max(jnp.abs(native))


def test_an_image_smaller_than_its_kernel_is_refused():
    with pytest.raises(InputError, match=r"3x3 kernel .*\(2, 9\)"):
        conv_general_dilated(jnp.ones((1, 2, 9, 1)), jnp.ones((3, 3, 1, 1)), (1, 1), ((0, 0),) * 2)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_spread_inputs_and_wider_results_are_laxs(groups, rng):
    x = jnp.asarray(rng.standard_normal((1, 2, 2, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4 // groups, 4)), jnp.bfloat16)
    for options in ({"lhs_dilation": (2, 2)}, {"preferred_element_type": jnp.float32}):
        y, expected = (
            conv(
                x,
                kernel,
                (1, 1),
                ((1, 1), (1, 1)),
                dimension_numbers=NHWC,
                feature_group_count=groups,
                **options,
            )
            for conv in (conv_general_dilated, lax.conv_general_dilated)
        )
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y, expected)
