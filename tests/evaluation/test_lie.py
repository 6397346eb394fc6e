"""The Lie derivative compared with finite differences, on layers of known equivariance."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import (
    InputError,
    antialias,
    create_model,
    evaluate,
    lie_derivative,
    lie_derivative_by_layer,
    local_equivariance_error,
)
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.lie import FIELDS
from aa_flax.evaluation.shifts import shift_matrices
from aa_flax.models.classifier import Classifier
from aa_flax.nn.filters import IdealPool
from aa_flax.nn.layers import conv2d
from aa_flax.ops import circular_padding
from aa_flax.ops.filters import derivative_matrix
from tests.evaluation.tiny import CLASSES, COUNT, CROP, SIZE, Flat, Noise

TRANSLATIONS = ("translation_down", "translation_right")
SETTINGS: Any = {"crop_size": CROP, "image_size": SIZE, "resize_size": 0, "shift_range": 5}


def weights_at(position: float, size: int) -> np.ndarray:
    """Returns the trigonometric polynomials through each unit impulse at a position."""
    distance = position - np.arange(size)
    total = np.ones(size)
    for frequency in range(1, (size - 1) // 2 + 1):
        total += 2 * np.cos(2 * np.pi * frequency * distance / size)
    return (total + (np.cos(np.pi * distance) if size % 2 == 0 else 0)) / size


def moved(x: np.ndarray, name: str, t: float, stride: int = 1) -> np.ndarray:
    """Moves maps `(N, h, w, C)` by t, one position at a time."""
    if x.ndim == 2:
        return x
    turn = np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
    back = {
        "translation_down": lambda y, x: (y - t / stride, x),
        "translation_right": lambda y, x: (y, x - t / stride),
        "rotation": lambda y, x: turn @ (y, x),
        "scale": lambda y, x: (y * np.exp(-t), x * np.exp(-t)),
    }[name]
    height, width = x.shape[1:3]
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    found = np.zeros_like(x)
    for p in np.ndindex(height, width):
        down, right = middle + back(*(np.array(p) - middle))
        rows, columns = weights_at(down, height), weights_at(right, width)
        found[:, *p] = np.einsum("i,j,nijc->nc", rows, columns, x)
    return found


def to_maps(x):
    """A function of circular differences, a nonlinearity and every second position."""
    return jnp.tanh(x + 2 * jnp.roll(x, 1, 1) * jnp.roll(x, (2, 1), (1, 2)))[:, ::2, ::2]


def to_vectors(x):
    return jnp.tanh(to_maps(x)).max((1, 2))


@pytest.mark.parametrize(("f", "stride"), [(to_maps, 2), (to_vectors, 1), (jnp.sin, 1)])
@pytest.mark.parametrize("name", FIELDS)
def test_it_is_the_limit_of_finite_differences(rng, f, stride, name):
    x = rng.normal(size=(2, 5, 7, 2) if f is jnp.sin else (2, 6, 8, 2))
    t = 1e-5
    with jax.enable_x64(True):
        found = np.asarray(lie_derivative(f, jnp.asarray(x), name))
        ends = [
            moved(np.asarray(f(jnp.asarray(moved(x, name, s)))), name, -s, stride) for s in (t, -t)
        ]
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * t), atol=1e-6)
    assert np.abs(found).max() > 1e-2


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_the_derivative_is_that_of_band_limited_shifts(size):
    with jax.enable_x64(True):
        shifts = jnp.array([1e-5, -1e-5])
        ahead, back = np.asarray(shift_matrices(size, shifts))
    np.testing.assert_allclose(derivative_matrix(size), (back - ahead) / 2e-5, atol=1e-8)


@pytest.fixture
def noise(rng):
    return jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32)


@pytest.fixture
def waves():
    """Returns images of 16 pixels with frequencies up to 2."""
    y, x = 2 * np.pi * np.indices((16, 16)) / 16
    images = [np.sin(2 * y + x), np.cos(y - 2 * x), np.cos(x) + np.sin(y)]
    return jnp.asarray(np.stack(images, -1)[None], jnp.float32)


def convolution(x, stride=1):
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 4)) / 5, x.dtype)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=dims
    )


def subsampled(x):
    return x[:, ::2, ::2]


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_a_circular_convolution_commutes_with_translations_and_subsampling_does_not(noise, name):
    size = float(jnp.abs(noise).max())
    assert jnp.abs(lie_derivative(convolution, noise, name)).max() < 1e-5 * size
    assert jnp.abs(lie_derivative(subsampled, noise, name)).max() > 0.1 * size


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_subsampling_without_aliasing_commutes_with_translations(noise, waves, name):
    pool = IdealPool(2)
    np.testing.assert_allclose(lie_derivative(subsampled, waves, name), 0, atol=1e-5)
    with circular_padding():
        np.testing.assert_allclose(lie_derivative(pool, noise, name), 0, atol=1e-5)


@pytest.mark.parametrize("name", FIELDS)
def test_a_function_of_each_pixel_commutes_if_its_values_are_band_limited(noise, waves, name):
    found = lie_derivative(jnp.square, waves, name)
    np.testing.assert_allclose(found, 0, atol=1e-4)
    assert jnp.abs(lie_derivative(jnp.square, noise, name)).max() > 0.1


def blocks(model):
    return [*(block for _, block in model.named_blocks()), model.forward_head]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2_lpf4"])
def test_the_shares_of_a_models_layers_sum_to_its_derivative(rng, name):
    with jax.enable_x64(True):
        model = create_model(name, num_classes=5, dtype=jnp.float64)
        model.eval()
        state = jax.tree.map(lambda a: a.astype(jnp.float64), nnx.state(model, nnx.Param))
        nnx.update(model, state)
        layers = blocks(model)

        @jax.jit
        def both(x):
            shares = lie_derivative_by_layer(layers, x, "rotation")
            return shares, lie_derivative(model, x, "rotation")

        shares, whole = both(jnp.asarray(rng.normal(size=(1, 64, 64, 3))))
        shares, whole = [np.asarray(share) for share in shares], np.asarray(whole)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(sum(shares), whole, rtol=1e-9)
    assert all(np.abs(share).max() > 0 for share in shares[:5])


@pytest.mark.parametrize("name", FIELDS)
def test_the_shares_of_layers_sum_to_the_derivative_and_equivariant_layers_have_none(rng, name):
    layers = [convolution, jnp.tanh, subsampled, jnp.sin, lambda x: x.mean((1, 2)), jnp.cos]

    def whole(x):
        for layer in layers:
            x = layer(x)
        return x

    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, 16, 16, 3)))
        shares = lie_derivative_by_layer(layers, x, name)
        np.testing.assert_allclose(sum(shares), lie_derivative(whole, x, name), rtol=1e-5)
    np.testing.assert_allclose(shares[-1], 0, atol=1e-12)  # a function of vectors
    assert (np.abs(shares[0]).max() < 1e-12) == (name in TRANSLATIONS)
    # without divergence of the field, the derivative sums to 0 over a map
    assert (np.abs(shares[4]).max() < 1e-12) == (name != "scale")
    assert min(np.abs(share).max() for share in shares[1:4]) > 1e-4


def test_antialiasing_lowers_the_error(rng):
    def f(x):
        return jax.nn.relu(convolution(convolution(x)[..., :3], 2)).mean((1, 2))

    images = jnp.asarray(rng.normal(size=(8, 32, 32, 3)), jnp.float32)
    smooth = antialias(f, stem="dense")
    for name in TRANSLATIONS:
        error = local_equivariance_error(f, images, name)
        assert local_equivariance_error(smooth, images, name) < error / 2


def test_the_error_is_the_mean_square_over_images_and_dimensions(noise):
    def logits(x):
        return 3 * to_vectors(x)

    def probabilities(x):
        return jax.nn.softmax(logits(x))

    for softmax, f in ((None, probabilities), (False, logits)):
        found = local_equivariance_error(logits, noise, "scale", softmax=softmax)
        one_by_one = [lie_derivative(f, x[None], "scale")[0] for x in noise]
        expected = np.mean([np.square(d).sum() / 3 for d in one_by_one])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    of_maps = jnp.square(lie_derivative(to_maps, noise, "scale")).mean()
    np.testing.assert_allclose(local_equivariance_error(to_maps, noise, "scale"), of_maps)


def test_it_can_be_compiled_and_differentiated(noise):
    def loss(scale):
        return local_equivariance_error(lambda x: to_vectors(scale * x), noise, "rotation")

    found = jax.jit(jax.grad(loss))(1.0)
    expected = (loss(1.01) - loss(0.99)) / 0.02
    np.testing.assert_allclose(found, expected, rtol=0.05)


ONES = np.ones((2, 8, 8, 3), np.float32)


@pytest.mark.parametrize(
    ("f", "images", "message"),
    [
        (to_maps, ONES.astype(np.uint8), "images must be a floating-point array .*, got uint8"),
        (to_maps, ONES[0], r"images must be .*, got float32 of shape \(8, 8, 3\)"),
        (to_maps, [1.0], r"images must be .*, got list of shape"),
        (lambda x: x[:, 1:, 1:], ONES, "map of 7 x 7 positions of images of 8 x 8 pixels has no"),
        (lambda x: x.argmax(-1), ONES, r"layer 1, returns int32 of shape \(2, 8, 8\)"),
        (lambda x: x, ONES * 1j, "got complex64"),
        (lambda x: x.reshape(2, 64, 3), ONES, r"returns float32 of shape \(2, 64, 3\) for"),
        (lambda x: x.mean((0, 1)), ONES, r"returns float32 of shape \(8, 3\) .*vectors \(2, K\)"),
        (lambda x: (x, x), ONES, "returns tuple"),
        (np.tanh, ONES, "tanh cannot be differentiated, as it is not a function of JAX"),
    ],
)
def test_what_has_no_derivative_is_refused(f, images, message):
    with pytest.raises(InputError, match=message):
        lie_derivative(f, images, "rotation")


def test_unfit_arguments_are_refused():
    with pytest.raises(InputError, match=r"must be one of translation_down.*; got 'shear'"):
        lie_derivative(to_maps, ONES, "shear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="layers is empty"):
        lie_derivative_by_layer([], ONES, "scale")
    with pytest.raises(InputError, match="one number for each of 2 layers, got 1"):
        lie_derivative_by_layer([jnp.sin, to_maps], ONES, "scale", strides=[1])
    with pytest.raises(InputError, match=r"strides must be positive, got \(0,\)"):
        lie_derivative_by_layer([jnp.sin], ONES, "scale", strides=(0,))
    with pytest.raises(InputError, match="softmax of one channel is 1"):
        local_equivariance_error(lambda x: x.mean((1, 2, 3))[:, None], ONES, "scale")


def test_a_map_without_an_integer_stride_has_the_given_one(noise):
    (found,) = lie_derivative_by_layer(
        [lambda x: x[:, 1:-1, 1:-1]], noise, "translation_down", strides=[1]
    )
    slopes = [
        np.einsum("ij,njwc->niwc", derivative_matrix(len(x[0])), x)
        for x in (np.asarray(noise), np.asarray(noise[:, 1:-1, 1:-1]))
    ]
    np.testing.assert_allclose(found, slopes[1] - slopes[0][:, 1:-1, 1:-1], atol=1e-5)


class Strided(Classifier):
    """Two strided convolutions and a head."""

    name = "strided"

    def __init__(self):
        super().__init__(num_classes=CLASSES)
        rngs = nnx.Rngs(0)
        self.first = conv2d(3, 8, 3, stride=2, padding=1, rngs=rngs)
        self.second = conv2d(8, 8, 3, stride=2, padding=1, rngs=rngs)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def named_blocks(self):
        yield "first", lambda x: nnx.relu(self.first(x))
        yield "second", lambda x: nnx.relu(self.second(x))


def test_the_measure_has_the_error_of_all_images_and_the_shares_of_layers():
    model = Strided()
    found = evaluate(model, Noise(), "lee", **SETTINGS)["lee"]
    crop = (SIZE - CROP) // 2
    images = normalise(jnp.asarray(Noise().images[:, crop:-crop, crop:-crop]))
    errors = {name: float(local_equivariance_error(model, images, name)) for name in FIELDS}
    translation = (errors["translation_down"] + errors["translation_right"]) / 2
    expected = {
        "translation": translation,
        "rotation": errors["rotation"],
        "scale": errors["scale"],
    }
    units = {"translation": 1, "rotation": np.pi / 180, "scale": 0.01}
    assert found["num_images"] == COUNT
    for name, error in expected.items():
        assert found[name]["error"] == pytest.approx(error, rel=1e-4)
        change = 100 * units[name] * np.sqrt(CLASSES * error)
        assert found[name]["change"] == pytest.approx(change, rel=1e-4)
        assert list(found[name]["layers"]) == ["first", "second", "head"]
        assert sum(found[name]["layers"].values()) == pytest.approx(100)


def test_the_measure_takes_functions_of_jax_and_models_without_blocks():
    of_model = evaluate(Flat(), Noise(), "lee", lee_images=5, **SETTINGS)["lee"]
    of_function = evaluate(lambda x: Flat()(x), Noise(), "lee", lee_images=5, **SETTINGS)["lee"]
    assert of_model == of_function
    assert of_model["num_images"] == 5
    assert "layers" not in of_model["scale"]


def test_the_measure_refuses_functions_of_other_frameworks_and_no_images():
    with pytest.raises(InputError, match="which is not a function of JAX"):
        evaluate(lambda x: np.array(x).mean((1, 2)), Noise(), "lee", **SETTINGS)
    with pytest.raises(InputError, match="--lee_images must be an integer of at least 1, got 0"):
        evaluate(Flat(), Noise(), "lee", lee_images=0, **SETTINGS)
