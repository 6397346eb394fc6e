"""Matched batch statistics: outputs of every batch norm get the source's moments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from aa_flax import (
    InputError,
    antialias,
    from_torch,
    match_statistics,
    recalibrate_batch_norm,
)
from aa_flax.models.resnet import BasicBlock, ResNet
from aa_flax.nn.blur import BlurPool
from aa_flax.nn.layers import BatchNorm, conv2d
from tests.randomised import randomised

CHANNELS = 6


def images(count=4, seed=0, shape=(32, 32, 3)):
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)


class Model(nnx.Module):
    """Two strided convolutions, each with a batch norm; antialiased: a blur after the first."""

    def __init__(self, blur=False, norm=BatchNorm, bias=False, dtype=None):
        options = {"use_bias": bias, "dtype": dtype, "rngs": nnx.Rngs(0)}
        self.conv1 = conv2d(3, CHANNELS, 3, stride=1 if blur else 2, **options)
        self.conv2 = conv2d(CHANNELS, CHANNELS, 3, **options)
        self.norm1, self.norm2 = ((norm and norm(CHANNELS, rngs=nnx.Rngs(0))) for _ in range(2))
        self.pool = BlurPool(4, stride=2) if blur else None

    def __call__(self, x):
        for conv, norm, pool in (
            (self.conv1, self.norm1, self.pool),
            (self.conv2, self.norm2, None),
        ):
            x = conv(x)
            x = x if norm is None else norm(x)
            x = x if pool is None else pool(jax.nn.relu(x))
        return x


def pair(**options):
    """Returns an antialiased model and its source, with the same random variables."""
    return randomised(Model(blur=True, **options)), randomised(Model(**options))


def statistics(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


def moments(y, axis=-1):
    axes = tuple(i for i in range(y.ndim) if i != axis % y.ndim)
    y = np.asarray(y, np.float64)
    return np.stack([y.mean(axes), y.std(axes)])


def assert_same_moments(found, expected, axis=-1, rtol=1e-3):
    np.testing.assert_allclose(moments(found, axis), moments(expected, axis), rtol=rtol, atol=1e-4)


def resnets():
    options = {"num_classes": 3, "rngs": nnx.Rngs(0)}
    models = (ResNet(BasicBlock, (1, 1, 1, 1), filter_size=size, **options) for size in (4, None))
    return tuple(map(randomised, models))


@pytest.mark.parametrize(
    ("make", "norms"), [(pair, 2), pytest.param(resnets, 12, marks=pytest.mark.slow)]
)
def test_outputs_of_every_batch_norm_have_the_sources_moments(make, norms, monkeypatch):
    model, source = make()
    x = images(shape=(64, 64, 3))
    assert match_statistics(model, source, x) is model
    outputs, plain = [], BatchNorm.__call__

    def recorded(self, x):
        outputs.append(plain(self, x))
        return outputs[-1]

    monkeypatch.setattr(BatchNorm, "__call__", recorded)
    for each in (model, source):
        each(x)
    assert len(outputs) == 2 * norms
    for found, expected in zip(outputs[:norms], outputs[norms:], strict=True):
        assert_same_moments(found, expected)


@pytest.mark.parametrize("norm", [BatchNorm, nnx.BatchNorm])
def test_nothing_but_the_statistics_of_the_model_changes(norm):
    model, source = pair(norm=norm)
    before = [nnx.to_pure_dict(nnx.state(nnx.clone(each), nnx.Param)) for each in (model, source)]
    before.append(statistics(source))
    model.train()
    match_statistics(model, source, images())
    assert model.norm1.use_running_average
    assert not np.allclose(model.norm2.mean[...], source.norm2.mean[...])
    assert_same_moments(model(images()), source(images()))
    after = [nnx.to_pure_dict(nnx.state(each, nnx.Param)) for each in (model, source)]
    jax.tree.map(np.testing.assert_array_equal, before, [*after, statistics(source)])


def test_a_model_that_is_its_source_keeps_its_statistics():
    model, source = (randomised(Model()) for _ in range(2))
    model.norm1.mean.set_value(model.norm1.mean[...] + 3)  # has no influence
    match_statistics(model, source, images())
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-5), statistics(model), statistics(source)
    )


def test_several_batches_are_one():
    (one, source), (several, _) = pair(), pair()
    x = images(7)
    match_statistics(one, source, x)
    match_statistics(several, source, iter([x[:2], x[2:], x[:0]]))
    jax.tree.map(np.testing.assert_array_equal, statistics(one), statistics(several))


def converted(model):
    """Moves statistics into convolutions and biases, as converters do: the same function."""
    for conv, norm in ((model.conv1, model.norm1), (model.conv2, model.norm2)):
        factor = norm.scale[...] / jnp.sqrt(norm.var[...] + norm.epsilon)
        conv.kernel.set_value(conv.kernel[...] * factor)
        norm.bias.set_value(norm.bias[...] - norm.mean[...] * factor)
        norm.scale.set_value(jnp.ones(CHANNELS))
        norm.mean.set_value(jnp.zeros(CHANNELS))
        norm.var.set_value(jnp.full(CHANNELS, 1 - norm.epsilon))
    return model


def test_folded_batch_norms_are_matched_to_the_same_function_and_not_re_estimated():
    (model, source), (folded, folded_source) = pair(), map(converted, pair())
    x = images()
    np.testing.assert_allclose(folded_source(x), source(x), atol=1e-4)
    match_statistics(model, source, x)
    match_statistics(folded, folded_source, x)
    np.testing.assert_allclose(folded(x), model(x), atol=1e-3)
    with pytest.raises(InputError, match=r"norm1 has mean 0 and variance 1.*match_statistics"):
        recalibrate_batch_norm(folded_source, x)


def test_channels_that_are_constant_keep_their_scale():
    model, source = pair()
    for each in (model, source):
        each.conv2.kernel.set_value(each.conv2.kernel[...].at[..., 0].set(0))
    match_statistics(model, source, images())
    np.testing.assert_array_equal(model.norm2.var[...][0], source.norm2.var[...][0])
    assert_same_moments(model(images()), source(images()))


def test_one_pixel_of_one_image_is_enough_for_the_mean():
    model, source = pair()
    x = images(1, shape=(7, 7, 3))
    assert source(x).shape == (1, 1, 1, CHANNELS)
    match_statistics(model, source, x)
    np.testing.assert_allclose(model(x), source(x), atol=1e-4)


def test_half_precision_is_matched_in_float32():
    model, source = pair(dtype=jnp.bfloat16)
    match_statistics(model, source, images())
    assert model.norm1.mean.dtype == jnp.float32
    assert_same_moments(model(images()), source(images()), rtol=0.02)


def test_without_batch_norm_biases_are_corrected():
    model, source = pair(norm=None, bias=True)
    match_statistics(model, source, images())
    found, expected = moments(model(images())), moments(source(images()))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)


def test_biases_are_not_matched_where_filters_leave_no_variance():
    def f(params, x):
        return x + params["bias"]

    def filtered(params, x):  # of noise, a thousandth of the variance
        return f(params, jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape))

    with pytest.raises(InputError, match=r"bias would have 0\.\d+ % of the source's variance"):
        match_statistics(filtered, f, images(), {"bias": jnp.zeros(3)})


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        for stride in (2, 1):  # a blur after the last batch norm would change its moments
            x = linen.Conv(CHANNELS, (3, 3), strides=stride, use_bias=False)(x)
            x = linen.BatchNorm(use_running_average=not train)(jnp.abs(x))
        return x


def test_a_function_of_linen():
    x = images()
    model = LinenModel()
    params = model.init(jax.random.key(0), x)
    f = antialias(model.apply, min_channels=0, before=False)
    new = match_statistics(f, model.apply, x, params)
    assert_same_moments(f(new, x), model.apply(params, x))
    jax.tree.map(np.testing.assert_array_equal, new["params"], params["params"])
    assert not np.allclose(f(params, x).mean((0, 1, 2)), f(new, x).mean((0, 1, 2)), atol=1e-3)


@pytest.mark.slow
def test_a_function_of_torch_in_its_layout():
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchax")
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU)
    conv, norm, relu = layers
    model = torch.nn.Sequential(conv(3, 8, 3, stride=2), norm(8), relu(), conv(8, 8, 3), norm(8))
    x = images().transpose(0, 3, 1, 2)
    f, params = from_torch(model, x)
    blurred = antialias(f, min_channels=0)
    new = match_statistics(blurred, f, x, params)
    assert_same_moments(blurred(new, x), f(params, x), axis=1)
    assert {name for name in new if new[name] is not params[name]} == {
        f"{i}.running_{name}" for i in (1, 4) for name in ("mean", "var")
    }


@pytest.mark.slow
def test_a_function_of_haiku():
    hk = pytest.importorskip("haiku")
    x = images()

    def forward(x):
        for stride in (2, 1):
            x = hk.Conv2D(CHANNELS, 3, stride)(jnp.abs(x))
            x = hk.BatchNorm(True, True, 0.9)(x, is_training=hk.running_init())
        return x

    model = hk.without_apply_rng(hk.transform_with_state(forward))
    params = model.init(jax.random.key(0), x)

    def f(params, x):
        return model.apply(*params, x)[0]

    blurred = antialias(f, min_channels=0, before=False)
    new = match_statistics(blurred, f, x, params)
    assert_same_moments(blurred(new, x), f(params, x))


def twice(params, x):
    return abs(x + params["bias"]) + params["bias"]


def in_another_form(params, x):
    factor = lax.rsqrt(params["var"] + 1e-5)
    return x * factor - params["mean"] * factor


def in_a_loop(params, x):
    def step(x, _):
        return (x - params["mean"]) * lax.rsqrt(params["var"] + 1e-5), None

    return lax.scan(step, x, None, length=2)[0]


PARAMS = {"mean": jnp.zeros(3), "var": jnp.ones(3), "bias": jnp.ones(3)}


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda params, x: x * params["bias"], "found no batch norm"),
        (lambda params, x: x.mean((1, 2)) + params["bias"], "found no batch norm"),
        (twice, "bias is used several times"),
        (in_another_form, "uses var otherwise"),
        (in_a_loop, "uses var otherwise"),
    ],
)
def test_functions_that_cannot_be_matched_are_refused(f, message):
    with pytest.raises(InputError, match=message):
        match_statistics(f, f, images(), PARAMS)


def other_weights():
    model, source = pair()
    model.conv1.kernel.set_value(model.conv1.kernel[...] + 1)
    return model, source


def without_one():
    model, source = pair()
    model.norm2 = None
    return model, source


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (pair, [], "images, all of one size; got none"),
        (pair, [images(), images(shape=(16, 16, 3))], r"\(16, 16, 3\) and \(32, 32, 3\)"),
        (pair, images().astype(np.uint8), "floats, got a ndarray of uint8"),
        (pair, [(images(), 0)], "got a tuple of other values.*leave out labels"),
        (pair, images() * np.nan, "not finite; nothing is changed"),
        (other_weights, images(), r"other weights.*conv1\.kernel; copy"),
        (without_one, images(), r"only one of the models has norm2\.mean"),
        (lambda: (antialias(pair()[0]), pair()[1]), images(), "got a Antialiased and no params"),
    ],
)
def test_invalid_input_is_refused_and_nothing_is_changed(make, given, message):
    model, source = make()
    module = getattr(model, "function", model)
    before = statistics(module)
    with pytest.raises(InputError, match=message):
        match_statistics(model, source, given)
    jax.tree.map(np.testing.assert_array_equal, statistics(module), before)
