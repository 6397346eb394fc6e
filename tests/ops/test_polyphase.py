import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax import ops
from aa_flax.ops.polyphase import mix_phases, polyphase, put_phase, take_phase


@pytest.mark.parametrize(
    ("size", "stride"), [((8,), 2), ((6, 9), 3), ((4, 6), (2, 3)), ((4, 2, 6), 2)]
)
def test_phases_are_strided_slices(size, stride, rng):
    x = rng.standard_normal((3, *size, 2), np.float32)
    strides = (stride,) * len(size) if isinstance(stride, int) else stride
    phases = polyphase(x, stride)
    for p, offsets in enumerate(np.ndindex(*strides)):
        expected = x[:, *(slice(i, None, s) for i, s in zip(offsets, strides, strict=True))]
        np.testing.assert_array_equal(phases[:, p], expected)
        np.testing.assert_array_equal(take_phase(x, jnp.full(3, p), stride), expected)


def test_each_image_has_a_phase_of_its_own_and_a_mixture_is_their_sum(rng):
    x = jnp.asarray(rng.standard_normal((4, 6, 4, 2)), jnp.float32)
    phase = jnp.array([3, 0, 2, 1])
    expected = polyphase(x, 2)[jnp.arange(4), phase]
    np.testing.assert_array_equal(take_phase(x, phase, 2), expected)
    np.testing.assert_array_equal(mix_phases(x, jax.nn.one_hot(phase, 4), 2), expected)
    halves = mix_phases(x, jnp.full((4, 4), 0.25), 2)
    np.testing.assert_allclose(halves, polyphase(x, 2).mean(1), atol=1e-6)


@pytest.mark.parametrize(("circular", "last"), [(False, 4.0), (True, 0.0)])
def test_where_the_stride_does_not_divide_the_border_or_the_image_is_repeated(circular, last):
    x = jnp.arange(5.0)[None, :, None]
    if circular:
        with ops.circular_padding():
            y = take_phase(x, jnp.array([1]), 2)
    else:
        y = take_phase(x, jnp.array([1]), 2)
    np.testing.assert_array_equal(y[0, :, 0], [1, 3, last])


def test_putting_back_is_the_adjoint(rng):
    x = jnp.asarray(rng.standard_normal((3, 6, 8, 2)), jnp.float32)
    weights = jax.nn.softmax(jnp.asarray(rng.standard_normal((3, 4)), jnp.float32))
    phase = jnp.array([3, 0, 2])
    for take, choice in ((take_phase, phase), (mix_phases, weights)):
        y, transpose = jax.vjp(lambda x, take=take, choice=choice: take(x, choice, 2), x)
        np.testing.assert_allclose(put_phase(y, choice, 2, (6, 8)), *transpose(y), atol=1e-6)


def test_a_phase_is_taken_under_vmap_and_by_its_gradient_put_back(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 4, 1)), jnp.float32)
    phase = jnp.array([[3, 0, 2], [1, 1, 0]])
    expected = jnp.stack([take_phase(image, p, 2) for image, p in zip(x, phase, strict=True)])
    np.testing.assert_array_equal(jax.vmap(lambda x, p: take_phase(x, p, 2))(x, phase), expected)
