import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import lax

from aa_flax.blurpool import blur_pool
from aa_flax.layers import (
    BatchNorm,
    circular_padding,
    conv2d,
    conv_general_dilated,
    linear,
    max_pool,
)

NHWC = ("NHWC", "HWIO", "NHWC")


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.moveaxis(x, -1, 1))


def from_torch(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def test_batch_norm_in_training_equals_torch(rng):
    x = rng.standard_normal((4, 5, 6, 3), np.float32) * 3 + 1
    reference = torch.nn.BatchNorm2d(3)
    bn = BatchNorm(3, rngs=nnx.Rngs(0))
    for _ in range(2):
        expected = reference(to_torch(x))
        np.testing.assert_allclose(bn(jnp.asarray(x)), from_torch(expected), atol=1e-5)
    np.testing.assert_allclose(bn.mean[...], reference.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(bn.var[...], reference.running_var.numpy(), rtol=1e-5)


def test_batch_norm_does_not_cancel_at_a_large_mean(rng):
    x = rng.standard_normal((64, 4, 4, 1), np.float32) + 3000
    y = BatchNorm(1, rngs=nnx.Rngs(0))(jnp.asarray(x))
    np.testing.assert_allclose(y, (x - x.mean()) / x.std(), atol=2e-3)


def test_batch_norm_keeps_bfloat16_activations_and_float32_statistics(rng):
    bn = BatchNorm(3, rngs=nnx.Rngs(0))
    y = bn(jnp.asarray(rng.standard_normal((8, 3)), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert bn.mean[...].dtype == bn.var[...].dtype == jnp.float32


def test_batch_norm_of_a_single_value_is_refused():
    with pytest.raises(ValueError, match=r"larger batch or image.*model\.eval"):
        BatchNorm(3, rngs=nnx.Rngs(0))(jnp.ones((1, 1, 1, 3)))


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 1, 0), (3, 2, 1), (3, 1, 0)])
def test_max_pool_and_its_gradient_equal_torch_even_at_ties(window, stride, padding, rng):
    x = rng.integers(0, 3, (2, 9, 8, 3)).astype(np.float32)  # many ties
    tensor = to_torch(x).requires_grad_()
    expected = torch.nn.functional.max_pool2d(tensor, window, stride, padding)
    y, gradient = jax.vjp(lambda x: max_pool(x, window, stride=stride, padding=padding), x)
    np.testing.assert_array_equal(y, from_torch(expected))
    weights = rng.standard_normal(y.shape, np.float32)
    (expected * to_torch(weights)).sum().backward()
    assert tensor.grad is not None
    np.testing.assert_allclose(gradient(weights)[0], from_torch(tensor.grad), atol=1e-6)


def test_max_pool_propagates_nan():
    x = jnp.array([1.0, jnp.nan, 0.0, 2.0])[None, :, None]
    np.testing.assert_array_equal(max_pool(x, 2, stride=1)[0, :, 0], [jnp.nan, jnp.nan, 2.0])


def test_max_pool_of_too_small_an_image_names_its_size():
    with pytest.raises(ValueError, match=r"\(2, 8\).*at least 3 pixels"):
        max_pool(jnp.ones((1, 2, 8, 1)), 3, stride=1)


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


def test_convolutions_start_as_kaiming_normal_of_fan_out():
    kernel = conv2d(64, 128, 3, groups=4, rngs=nnx.Rngs(0)).kernel[...]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (128 * 9)), rel=0.02)


def test_linear_layers_start_uniform_as_torchs():
    layer = linear(400, 1000, rngs=nnx.Rngs(0))
    assert layer.bias is not None
    for values in (layer.kernel[...], layer.bias[...]):
        assert jnp.abs(values).max() == pytest.approx(1 / 20, rel=0.01)
        assert values.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.05)


def shifted_maps(layer, x, stride):
    """A layer's maps of an image and of the same image rolled by its stride, to be compared."""
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
