"""Equivariance maps of small circular stacks, compared with theory."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aa_flax import BlurPool, InputError, create_model
from aa_flax.evaluation.equivariance import (
    EquivarianceMaps,
    block_strides,
    check_crop,
    cosine_distance,
    equivariance_maps,
)
from aa_flax.evaluation.shifts import shift_band_limited
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import data_mesh
from benchmarks.reference import abstract_model

SIZE = 16


class Stack(Classifier):
    """Three circular convolutions with ReLU, the last two followed by subsampling or BlurPool."""

    def __init__(self, filter_size: int, relu=jax.nn.relu):
        rngs = nnx.Rngs(1)
        widths = (3, 8, 8, 8)
        self.convs = nnx.List(
            nnx.Conv(a, b, (3, 3), padding="CIRCULAR", rngs=rngs)
            for a, b in itertools.pairwise(widths)
        )
        self.pool = BlurPool(filter_size, padding="circular")
        self.relu = relu

    def named_blocks(self):
        yield "conv1", lambda x: self.relu(self.convs[0](x))
        yield "conv2", lambda x: self.pool(self.relu(self.convs[1](x)))
        yield "conv3", lambda x: self.pool(self.relu(self.convs[2](x)))

    def __call__(self, x):
        for _, block in self.named_blocks():
            x = block(x)
        return x.mean((1, 2))


def batch(images):
    return {"image": images, "mask": np.arange(len(images)) < 3}


@pytest.fixture
def noise(rng):
    return rng.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)


def maps_of(model, images) -> EquivarianceMaps:
    return equivariance_maps(model, batch(images), crop_size=SIZE, mesh=data_mesh())


@pytest.mark.parametrize("filter_size", [1, 2, 3, 4])
def test_zeros_are_at_the_multiples_of_the_stride_and_nowhere_else(noise, filter_size):
    found = maps_of(Stack(filter_size), noise)
    assert found.strides[:3] == (1, 2, 4)
    assert found.maps.shape == (4, 4, 4)
    np.testing.assert_allclose(found.maps[0], 0, atol=1e-6)
    down, right = np.indices((4, 4))
    for block, stride in ((1, 2), (2, 4)):
        whole = (down % stride == 0) & (right % stride == 0)
        np.testing.assert_allclose(found.maps[block][whole], 0, atol=1e-6)
        assert found.maps[block][~whole].min() > 1e-5


def test_antialiasing_brings_features_closer_to_equivariance(noise):
    plain, antialiased = maps_of(Stack(1), noise), maps_of(Stack(4), noise)
    for block in (1, 2, 3):
        assert antialiased.maps[block].mean() < 0.5 * plain.maps[block].mean()


def test_a_linear_layer_without_aliasing_is_equivariant_at_every_shift():
    place = 2 * np.pi * np.arange(SIZE) / SIZE
    waves = [np.sin(place[:, None] + i * place + phase) for i in (0, 1) for phase in (0, 1)]
    images = np.stack([128 + 120 * np.stack([w, w.T, -w], -1) for w in waves])
    found = maps_of(Stack(1, relu=lambda x: x), images.round().astype(np.uint8))
    assert found.maps[:3].max() < 1e-3  # of rounding the waves to uint8


def test_a_map_equals_one_shift_at_a_time(noise):
    model = Stack(3)
    found = maps_of(model, noise)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    def features(images):
        x = jnp.asarray((images / 255 - mean) / std, jnp.float32)
        for _, block in list(model.named_blocks())[:2]:
            x = block(x)
        return x

    for down, right in ((0, 0), (1, 0), (3, 2)):
        moved = features(np.roll(noise, (down, right), (1, 2)))
        shifts = jnp.broadcast_to(jnp.array([down / 2, right / 2]), (4, 2))
        still = np.asarray(shift_band_limited(features(noise), shifts), np.float64)
        moved = np.asarray(moved, np.float64)
        lengths = np.linalg.norm(still, axis=-1) * np.linalg.norm(moved, axis=-1)
        expected = 1 - ((still * moved).sum(-1) / lengths)[:3].mean()
        assert found.maps[1, down, right] == pytest.approx(expected, abs=1e-6)


def test_the_scale_is_the_mean_distance_of_different_images_that_are_not_masked(noise):
    model = Stack(1)
    found = maps_of(model, noise)
    logits = np.asarray(model((noise / 255 - 0.45) / 0.225))
    assert found.scale[-1] > 0
    assert found.scale[-1] < 1
    assert logits.shape == (4, 8)
    twins = np.broadcast_to(noise[:1], noise.shape)
    np.testing.assert_allclose(maps_of(model, twins).scale, 0, atol=1e-6)


def test_zero_vectors_are_near_each_other_and_far_from_all_else():
    x = jnp.array([[[[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]])
    y = jnp.array([[[[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 1.0]]]])
    assert cosine_distance(x, y)[0] == pytest.approx((0 + 1 + 0 + 1) / 4)


def test_maps_survive_a_file(noise, tmp_path):
    found = maps_of(Stack(2), noise)
    found.save(tmp_path / "maps.npz")
    loaded = EquivarianceMaps.load(tmp_path / "maps.npz")
    assert loaded.blocks == found.blocks == ("conv1", "conv2", "conv3", "logits")
    assert loaded.strides == found.strides
    np.testing.assert_array_equal(loaded.maps, found.maps)


def test_a_crop_that_is_no_multiple_of_the_stride_is_refused(rng):
    images = rng.integers(0, 256, (2, 18, 18, 3), np.uint8)
    with pytest.raises(InputError, match=r"multiple of the model's stride, 4 .*crop_size=20"):
        equivariance_maps(Stack(1), batch(images), crop_size=18, mesh=data_mesh())


abstract = functools.cache(abstract_model)


@pytest.mark.parametrize("name", ["resnet18", "resnet18_lpf4"])
def test_strides_do_not_depend_on_the_crop(name):
    assert block_strides(abstract(name)) == (4, 4, 4, 8, 8, 16, 16, 32, 32)


@pytest.mark.parametrize(
    ("name", "crop", "sizes"),
    [
        ("resnet18", 40, "64 or 32"),
        ("resnet18_lpf4", 40, "64"),  # whose receptive field is less than 32 pixels
        ("resnet18", 48, "64 or 32"),
        ("resnet18_lpf4", 60, "64"),
        ("resnet18_lpf4", 232, "256 or 224"),
        ("resnet18", 300, "320 or 288"),
    ],
)
def test_a_crop_that_does_not_fit_names_the_nearest_that_do(name, crop, sizes):
    with pytest.raises(InputError, match=rf"stride, 32 pixels, got {crop};.*crop_size={sizes} "):
        check_crop(abstract(name), crop)


@pytest.mark.parametrize("name", ["resnet18", "resnet18_lpf4"])
def test_a_crop_that_is_a_multiple_of_the_stride_is_accepted(name):
    assert check_crop(abstract(name), 64) == 32


class Third(Stack):
    """A model that subsamples by three, and then resizes any map to one size."""

    def __init__(self, fixed: bool):
        super().__init__(1)
        self.fixed = fixed

    def named_blocks(self):
        yield "third", lambda x: x[:, ::3, ::3]
        if self.fixed:
            yield "fixed", lambda x: x[:, :7, :7]


def test_a_stride_that_is_no_power_of_two_is_found():
    assert block_strides(Third(fixed=False)) == (3,)


def test_a_block_without_a_stride_is_refused():
    with pytest.raises(InputError, match="need blocks with an integer stride"):
        block_strides(Third(fixed=True))


def test_features_that_are_not_finite_are_refused(noise):
    model = Stack(1)
    model.convs[2].kernel[...] = jnp.full_like(model.convs[2].kernel[...], jnp.nan)
    with pytest.raises(InputError, match="features are not finite"):
        maps_of(model, noise)


@pytest.mark.slow
@pytest.mark.parametrize("filter_size", ["", "_lpf4"])
@pytest.mark.parametrize("base", ["resnet18", "alexnet", "vgg11_bn", "densenet121", "mobilenet_v2"])
def test_every_family_has_zeros_at_the_multiples_of_its_strides(rng, base, filter_size):
    images = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    model = create_model(base + filter_size, num_classes=10)
    found = equivariance_maps(model, batch(images), crop_size=32, mesh=data_mesh())
    down, right = np.indices(found.maps.shape[1:])
    for stride, distances in zip(found.strides[:-1], found.maps[:-1], strict=True):
        whole = (down % stride == 0) & (right % stride == 0)
        np.testing.assert_allclose(distances[whole], 0, atol=1e-5)
        assert stride == 1 or distances[~whole].mean() > 5e-5  # zeros are 5e-8
