"""Models of other packages: Linen (jax-resnet), Haiku, Equinox (equimo), Keras and JaxNN."""

import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax import antialias
from benchmarks.works_with import MODELS
from tests.sweeps import slow_but
from tests.transform.models import strided_operations


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def check(f, arguments, kinds):
    """Checks the kinds of the antialiased sites, and that the transformed function runs."""
    report = antialias.report(f, *arguments)
    assert sorted(row.site.kind for row in report.antialiased) == sorted(kinds)
    assert [row.site.channels for row in report.left_alone] == [3]
    assert not any(row.reason for row in report.antialiased), report
    shape = jax.eval_shape(f, *arguments)
    assert jax.eval_shape(antialias(f), *arguments) == shape
    return report


def test_linen():
    resnet = pytest.importorskip("jax_resnet")
    model = resnet.ResNet18(n_classes=3)
    x = images(2, 64, 64, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    report = check(model.apply, (variables, x), ["max pool"] + 6 * ["convolution"])
    assert "ConvBlock_0" in report.antialiased[1].site.layer


def test_haiku():
    hk = pytest.importorskip("haiku")
    model = hk.transform_with_state(lambda x: hk.nets.ResNet18(3)(x, is_training=hk.running_init()))
    x = images(2, 64, 64, 3)
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)

    def f(params, state, x):
        return model.apply(params, state, None, x)[0]

    check(f, (params, state, x), ["max pool"] + 6 * ["convolution"])


def test_equinox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mobilenet = pytest.importorskip("equimo.models.mobilenet")
    eqx = pytest.importorskip("equinox")
    model = eqx.filter_eval_shape(mobilenet.mobilenetv3_small, num_classes=3, key=jax.random.key(0))
    arrays, rest = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def f(arrays, x):
        run = eqx.combine(arrays, rest)
        return jax.vmap(lambda x: run(x, key=jax.random.key(0), inference=True))(x)

    check(f, (arrays, images(2, 3, 96, 96)), 4 * ["convolution"])


@pytest.mark.parametrize("name", slow_but(("Keras, ConvNeXtTiny",), MODELS))
def test_a_report_has_every_strided_operation_of_the_models_that_the_page_shows(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            f, arguments = MODELS[name]()
        except ImportError as error:
            pytest.skip(f"{error}")
    report = antialias.report(f, *arguments)
    sites = Counter(row.site.primitive for row in report)
    assert sites == strided_operations(f, *arguments)
    assert report.left_alone[0].site.channels == 3


@pytest.mark.parametrize("closed_over", [True, False])
def test_equinox_layers_have_the_names_of_their_parameters(closed_over):
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 2)
    model = eqx.nn.Sequential([eqx.nn.Conv2d(4, 4, 3, 2, 1, key=key) for key in keys])
    arrays, rest = eqx.partition(model, eqx.is_array)

    def f(arrays, x):
        return jax.vmap(eqx.combine(arrays, rest))(x)

    call = (jax.vmap(model),) if closed_over else (f, arrays)
    names = [row.site.layer for row in antialias.report(*call, images(2, 4, 16, 16))]
    assert names == ["layers.0.weight", "layers.1.weight"]
