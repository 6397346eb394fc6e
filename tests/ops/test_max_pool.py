from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aa_flax import InputError, ops
from aa_flax.ops import max_pool


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.moveaxis(x, -1, 1))


def from_torch(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.fixture(params=["this platform's form", "definitions"])
def form(request):
    with ops.definitions() if request.param == "definitions" else nullcontext():
        yield


@pytest.mark.usefixtures("form")
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


@pytest.mark.usefixtures("form")
def test_max_pool_propagates_nan():
    x = jnp.array([1.0, jnp.nan, 0.0, 2.0])[None, :, None]
    np.testing.assert_array_equal(max_pool(x, 2, stride=1)[0, :, 0], [jnp.nan, jnp.nan, 2.0])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bfloat16])
def test_padding_never_wins_whatever_the_type(dtype):
    x = jnp.array([3, 1, 2], dtype)[None, :, None] - jnp.array(
        0 if dtype == jnp.uint8 else 9, dtype
    )
    y = max_pool(x, 2, stride=1, padding=1)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y[0, :, 0], x[0, jnp.array([0, 0, 2, 2]), 0])


@pytest.mark.usefixtures("form")
def test_max_pool_of_too_small_an_image_names_its_size():
    with pytest.raises(InputError, match=r"\(2, 8\).*at least 3 pixels"):
        max_pool(jnp.ones((1, 2, 8, 1)), 3, stride=1)
