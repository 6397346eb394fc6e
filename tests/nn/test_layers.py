import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from aa_flax import InputError
from aa_flax.nn.layers import BatchNorm, conv2d, linear


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
    with jax.numpy_dtype_promotion("strict"):
        y = bn(jnp.asarray(rng.standard_normal((8, 3)), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert bn.mean[...].dtype == bn.var[...].dtype == jnp.float32


def test_batch_norm_does_not_write_into_arrays_of_numpy(rng):
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    layer.mean.set_value(mean)
    layer.var.set_value(var)
    layer(jnp.asarray(rng.standard_normal((2, 4, 4, 3)), jnp.float32))
    assert not mean.any()
    assert (var == 1).all()
    assert (layer.var[...] != 1).all()


def test_batch_norm_of_a_single_value_is_refused():
    with pytest.raises(InputError, match=r"larger batch or image.*model\.eval"):
        BatchNorm(3, rngs=nnx.Rngs(0))(jnp.ones((1, 1, 1, 3)))


def test_convolutions_start_as_kaiming_normal_of_fan_out():
    kernel = conv2d(64, 128, 3, groups=4, rngs=nnx.Rngs(0)).kernel[...]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (128 * 9)), rel=0.02)


def test_linear_layers_start_uniform_as_torchs():
    layer = linear(400, 1000, rngs=nnx.Rngs(0))
    assert layer.bias is not None
    for values in (layer.kernel[...], layer.bias[...]):
        assert jnp.abs(values).max() == pytest.approx(1 / 20, rel=0.01)
        assert values.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.05)
