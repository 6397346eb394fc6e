"""Initial values: distributions, dependence on seed and name only, and Flax's initializers."""

import hashlib
from functools import partial
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import aa_flax
from aa_flax.models.densenet import DenseNet
from aa_flax.nn.initializers import (
    Initializer,
    initialised,
    kaiming_normal_fan_in,
    kaiming_normal_fan_out,
    normal,
    ones,
    torch_uniform,
    zeros,
)

SHAPE = (3, 3, 16, 64)
DISTRIBUTIONS = [
    (kaiming_normal_fan_in, stats.norm(0, sqrt(2 / (9 * 16)))),
    (kaiming_normal_fan_out, stats.norm(0, sqrt(2 / (9 * 64)))),
    (normal(0.01), stats.norm(0, 0.01)),
    (torch_uniform(25), stats.uniform(-0.2, 0.4)),
]


class Bag(nnx.Module):
    """A model with a variable for each initializer, all of one shape."""

    def __init__(self, *initializers, shape=SHAPE, rngs):
        self.values = nnx.List([nnx.Param(init(rngs.params(), shape)) for init in initializers])


def drawn(*initializers, shape=SHAPE, rngs=None):
    build = partial(Bag, *initializers, shape=shape)
    bag = initialised(lambda rngs: build(rngs=rngs), rngs or nnx.Rngs(0))
    return [np.asarray(value[...]) for value in bag.values]


def flat(model):
    return {path: variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize(("initialiser", "expected"), DISTRIBUTIONS)
def test_numpy_and_jax_draw_from_the_distribution(initialiser, expected):
    by_jax = np.asarray(initialiser(jax.random.key(0), SHAPE))
    for values in (*drawn(initialiser), by_jax):
        assert values.dtype == np.float32
        assert stats.kstest(values.ravel(), expected.cdf).pvalue > 0.01
        assert expected.support()[0] <= values.min()
        assert values.max() <= expected.support()[1]


def test_constants_are_constant():
    zero, one = drawn(zeros, ones)
    assert (zero == 0).all()
    assert (one == 1).all()


def test_seed_name_and_stream_make_other_values():
    first, second = drawn(normal(1), normal(1))
    (other_seed,) = drawn(normal(1), rngs=nnx.Rngs(1))
    rngs = nnx.Rngs(0)
    again, later = drawn(normal(1), rngs=rngs)[0], drawn(normal(1), rngs=rngs)[0]
    np.testing.assert_array_equal(again, first)
    for other in (second, other_seed, later):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.05


def test_values_are_the_same_on_every_platform():
    """Detects a change of NumPy's normal variates; Philox itself is a published algorithm."""
    bell, even = drawn(normal(1), torch_uniform(1), shape=(3, 700_001))
    np.testing.assert_allclose(bell[0, :3], [0.7852255, 0.79644996, 2.018001], rtol=1e-6)
    assert hashlib.sha256(even.tobytes()).hexdigest()[:16] == "9c36c1f542e3fcf3"


def test_blocks_of_a_large_variable_are_independent_of_threads_and_of_each_other(monkeypatch):
    shape = (3 * 2**20 + 1,)
    (values,) = drawn(normal(1), shape=shape)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    np.testing.assert_array_equal(drawn(normal(1), shape=shape)[0], values)
    blocks = values[: 3 * 2**20].reshape(3, -1)
    assert np.abs(np.corrcoef(blocks) - np.eye(3)).max() < 0.005


def test_a_model_and_its_baseline_start_with_the_same_values():
    plain, blurred = aa_flax.create_model("mobilenet_v2"), aa_flax.create_model("mobilenet_v2_lpf4")
    a, b = flat(plain), flat(blurred)
    assert a.keys() == b.keys()
    assert all((np.asarray(a[p]) == np.asarray(b[p])).all() for p in a if a[p].dtype == jnp.float32)


def test_a_model_has_the_constructors_distributions_and_random_state():
    build = partial(DenseNet, (1,), growth_rate=8, num_init_features=8, drop_rate=0.1)
    expected, rngs = flat(build(rngs=nnx.Rngs(0))), nnx.Rngs(0)
    found = flat(initialised(lambda rngs: build(rngs=rngs), rngs))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == value.dtype
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or value.std() == 0:
            assert (found[path] == value).all(), path
        elif value.size > 1000:
            assert float(found[path].std()) == pytest.approx(float(value.std()), rel=0.1), path
    moved = nnx.Rngs(0)
    build(rngs=moved)
    assert rngs.params() == moved.params()


class Mixed(nnx.Module):
    """Builds Flax's initializers, modified ones, ones under `vmap`, and the keys themselves."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.half = nnx.Param(0.5 * normal(1.0)(rngs.params(), (3, 4)))
        init = partial(nnx.Linear, 3, 4, kernel_init=normal(1.0))
        self.layers = nnx.vmap(lambda rngs: init(rngs=rngs))(rngs.split(5))
        self.ours = nnx.Param(normal(1.0)(rngs.params(), (3, 4)))
        self.rngs = rngs


def test_what_is_not_an_initializers_value_is_what_the_constructor_computes():
    model, expected = (
        initialised(lambda rngs: Mixed(rngs=rngs), nnx.Rngs(3)),
        Mixed(rngs=nnx.Rngs(3)),
    )
    found, expected = flat(model), flat(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        same = bool((found[path] == value).all())
        assert same == (path != ("ours",)), path
    assert model.rngs.params() != model.rngs.params()


def test_within_a_trace_a_model_is_what_its_constructor_makes():
    build = partial(Bag, normal(1), shape=(3, 4))

    @jax.jit
    def make():
        return nnx.state(initialised(lambda rngs: build(rngs=rngs), nnx.Rngs(0)))

    traced, expected = make(), nnx.state(build(rngs=nnx.Rngs(0)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), traced, expected)


def test_a_new_head_starts_as_that_of_a_new_model(tmp_path):
    aa_flax.save_weights(aa_flax.create_model("resnet18"), tmp_path / "w.safetensors")
    tuned = aa_flax.create_model("resnet18", pretrained=tmp_path / "w.safetensors", num_classes=7)
    fresh = aa_flax.create_model("resnet18", num_classes=7)
    np.testing.assert_array_equal(tuned.fc.kernel[...], fresh.fc.kernel[...])


def test_a_scale_follows_the_fan():
    assert Initializer("normal", 3.0, fan="in").scale_of((2, 2, 9, 5)) == 3 / 6
    assert Initializer("uniform", 3.0, fan="out").scale_of((2, 2, 5, 9)) == 3 / 6
