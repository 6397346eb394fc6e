import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from aa_flax import InputError
from aa_flax.ops import adaptive_avg_pool, avg_pool


def torch_pool(pool, x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A torch pool on a channels-last array, and its gradient for the cotangent arange."""
    x_torch = torch.tensor(x, requires_grad=True)
    y = pool(x_torch.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    (y * torch.arange(float(y.numel())).reshape(y.shape)).sum().backward()
    assert x_torch.grad is not None
    return y.detach().numpy(), x_torch.grad.numpy()


@pytest.mark.parametrize("spatial", [(7, 7), (14, 21), (13, 9), (3, 8), (1, 1), (32, 6)])
@pytest.mark.parametrize(
    ("pool", "reference", "size"),
    [
        (adaptive_avg_pool, functional.adaptive_avg_pool2d, 7),
        (adaptive_avg_pool, functional.adaptive_avg_pool2d, 6),
        (avg_pool, functional.avg_pool2d, 1),
    ],
)
def test_pool_equals_torch_with_its_gradient(pool, reference, size, spatial, rng):
    x = rng.standard_normal((2, *spatial, 5), np.float32)
    expected, expected_gradient = torch_pool(reference, x, size)
    y, pull_back = jax.vjp(lambda x: pool(x, size), jnp.asarray(x))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = pull_back(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("spatial", [(8, 8), (9, 6), (2, 3)])
def test_average_pool_of_2_equals_torch(spatial, rng):
    x = rng.standard_normal((2, *spatial, 5), np.float32)
    expected, _ = torch_pool(functional.avg_pool2d, x, 2)
    np.testing.assert_allclose(avg_pool(jnp.asarray(x), 2), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_averaged_in_float32():
    x = jnp.full((1, 30, 30, 1), 1.0078125, jnp.bfloat16)
    assert (adaptive_avg_pool(x, 7) == x[0, 0, 0, 0]).all()
    assert adaptive_avg_pool(x, 7).dtype == jnp.bfloat16


def test_too_few_pixels_are_refused():
    with pytest.raises(InputError, match=r"at least 2 pixels.*\(1, 4\)"):
        avg_pool(jnp.zeros((1, 1, 4, 1)), 2)
    with pytest.raises(InputError, match=r"\(0, 4\)"):
        adaptive_avg_pool(jnp.zeros((1, 0, 4, 1)), 7)
