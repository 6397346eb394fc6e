from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from aa_flax import InputError, ops
from aa_flax.ops import adaptive_avg_pool, avg_pool, max_pool


def torch_pool(pool, x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Applies a torch pool to a channels-last array; returns also its gradient for arange."""
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


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.moveaxis(x, -1, 1))


def from_torch(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.fixture(params=["this platform's", "definitions"])
def implementation(request):
    with ops.definitions() if request.param == "definitions" else nullcontext():
        yield


@pytest.mark.usefixtures("implementation")
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


@pytest.mark.usefixtures("implementation")
def test_max_pool_propagates_nan():
    x = jnp.array([1.0, jnp.nan, 0.0, 2.0])[None, :, None]
    np.testing.assert_array_equal(max_pool(x, 2, stride=1)[0, :, 0], [jnp.nan, jnp.nan, 2.0])


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bfloat16])
def test_padding_never_wins_whatever_the_type(dtype):
    x = jnp.array([3, 1, 2], dtype)[None, :, None] - jnp.array(
        0 if dtype == jnp.uint8 else 9, dtype
    )
    y = max_pool(x, 2, stride=1, padding=1)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y[0, :, 0], x[0, jnp.array([0, 0, 2, 2]), 0])


@pytest.mark.usefixtures("implementation")
def test_max_pool_of_too_small_an_image_names_its_size():
    with pytest.raises(InputError, match=r"\(2, 8\).*at least 3 pixels"):
        max_pool(jnp.ones((1, 2, 8, 1)), 3, stride=1)
