"""Options, errors and reports of `antialias`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from aa_flax import InputError, antialias, blur_pool
from aa_flax.nn.filters import FilterPool
from tests.nn.toys import LargestPhase, WeightedBox, box


def conv(x, kernel, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    padding = ((1, 1), (1, 1)) if len(kernel) == 3 else "VALID"
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=numbers)


def model(params, x):
    """A model with a stem, a strided block with its shortcut, and a slice."""
    x = jax.nn.relu(conv(x, params["stem"], 2))
    y = jax.nn.relu(conv(x, params["block"]["kernel"], 2))
    x = y + conv(x, params["shortcut"], 2)
    with jax.named_scope("last"):
        return x[:, ::2, ::2]


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


PARAMS = {
    "stem": normal(3, 3, 3, 8),
    "block": {"kernel": normal(3, 3, 8, 8)},
    "shortcut": normal(1, 1, 8, 8),
}
X = normal(2, 32, 32, 3)
_WIDE = tuple(np.array([1, 3, 6, 10, 12, 12, 10, 6, 3, 1]) / 64)  # three means of 4 pixels


def test_every_site_has_a_row():
    report = antialias.report(model, PARAMS, X)
    assert [row.site.layer for row in report] == ["stem", "block.kernel", "shortcut", "last"]
    assert [row.site.kind for row in report] == 3 * ["convolution"] + ["slice"]
    assert [row.site.strides for row in report] == 4 * [(2, 2)]
    assert [row.site.window for row in report] == [(3, 3), (3, 3), (1, 1), (1, 1)]
    assert [row.site.shape for row in report][:2] == [(2, 32, 32, 3), (2, 16, 16, 8)]
    assert report[1].site.output_shape == (2, 8, 8, 8)
    assert [bool(row.done) for row in report] == [False, True, True, True]
    assert len(report.left_alone) == 1


def test_extra_work_is_that_of_density_and_blurs():
    report = antialias.report(model, PARAMS, X)
    outputs, block, blur = 2 * 8 * 8 * 8, 2 * 9 * 8, 2 * 16
    assert report[1].extra_flops == 3 * outputs * block + outputs * blur
    assert report[2].extra_flops == outputs * blur
    assert report.extra_flops == sum(row.extra_flops for row in report)


def test_a_report_prints_as_a_table():
    lines = str(antialias.report(model, PARAMS, X)).splitlines()
    assert lines[0].split()[:3] == ["layer", "site", "shape"]
    assert "left alone" in lines[2]
    assert "fewer than min_channels=4" in lines[2]
    assert lines[-1].startswith("3 antialiased, 1 left alone, +")


def test_loops_count_as_often_as_they_run():
    def f(x):
        return lax.scan(lambda c, _: (c, c[:, ::2, ::2]), x, length=5)[1]

    (row,) = antialias.report(f, X)
    assert row.extra_flops == 5 * 2 * 16 * (2 * 16 * 16 * 3)


def test_min_channels_where_and_filter_size_choose():
    stem = antialias(model, 3, min_channels=0, where=lambda site: site.channels == 3)
    assert [bool(row.done) for row in antialias.report(stem, PARAMS, X)] == [True] + 3 * [False]
    y = jax.nn.relu(
        conv(blur_pool(jax.nn.relu(conv(X, PARAMS["stem"], 1)), 3), PARAMS["block"]["kernel"], 2)
    )
    x = conv(blur_pool(jax.nn.relu(conv(X, PARAMS["stem"], 1)), 3), PARAMS["shortcut"], 2)
    np.testing.assert_allclose(jax.jit(stem)(PARAMS, X), (x + y)[:, ::2, ::2], atol=2e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_ensemble_vectorised_inside_keeps_its_stems_stride(channels):
    def stem(kernel, x):
        return jax.nn.relu(conv(x, kernel, 2))

    nested = jax.vmap(jax.vmap(stem), (None, 0))  # members are inside, views outside
    kernels, x = normal(5, 3, 3, channels, 8), normal(5, 2, 16, 16, channels)
    for f, images in ((jax.vmap(stem), x), (nested, x[None])):
        (row,) = antialias.report(f, kernels, images)
        assert (row.site.channels, row.done) == (channels, "")


def test_groups_of_one_model_are_not_an_ensemble():
    def depthwise(kernel, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=4
        )

    x = normal(2, 16, 16, 4)
    for f, kernel in ((depthwise, (3, 3, 1, 4)), (jax.vmap(depthwise, (0, None)), (2, 3, 3, 1, 4))):
        (row,) = antialias.report(f, normal(*kernel), x)
        assert row.site.channels == 4
        assert row.done


def test_before_blurs_first_and_keeps_the_stride():
    f = antialias(lambda x: jax.nn.relu(conv(x, PARAMS["stem"], 2)), before=True, min_channels=0)
    expected = jax.nn.relu(conv(blur_pool(X, 4, 1), PARAMS["stem"], 2))
    np.testing.assert_allclose(jax.jit(f)(X), expected, atol=1e-4)


def test_a_stem_is_left_or_reads_a_blurred_image_or_is_dense():
    def stem(x):
        return jax.nn.relu(conv(x, PARAMS["stem"], 4))

    (row,) = antialias.report(stem, X)
    assert "3 channels, fewer than min_channels=4; stem='blur' or 'dense'" in row.reason
    expected = {
        "blur": jax.nn.relu(conv(FilterPool([_WIDE], 1)(X), PARAMS["stem"], 4)),
        "dense": FilterPool([_WIDE], 4)(jax.nn.relu(conv(X, PARAMS["stem"], 1))),
    }
    for choice, y in expected.items():
        np.testing.assert_allclose(jax.jit(antialias(stem, stem=choice))(X), y, atol=1e-4)
    # `where` decides about a stem as well.
    found = jax.jit(antialias(stem, where=lambda site: "before"))(X)
    np.testing.assert_allclose(found, expected["blur"], atol=1e-4)


def test_where_returns_the_position_of_the_blur():
    def linear(x):
        return conv(x, PARAMS["block"]["kernel"], 2)

    def curved(x):
        return jnp.tanh(linear(x))

    x, kernel = normal(2, 12, 12, 8), PARAMS["block"]["kernel"]
    before, after = conv(blur_pool(x, 4, 1), kernel, 2), blur_pool(conv(x, kernel, 1))
    for place, expected in (("before", before), ("after", after)):
        f = antialias(linear, where=lambda site, place=place: place)
        np.testing.assert_allclose(jax.jit(f)(x), expected, atol=1e-4)
    f = antialias(curved, where=lambda site: "before")
    np.testing.assert_allclose(jax.jit(f)(x), jnp.tanh(before), atol=1e-4)
    np.testing.assert_allclose(jax.jit(antialias(linear))(x), before, atol=1e-4)
    np.testing.assert_allclose(jax.jit(antialias(linear, before=False))(x), after, atol=1e-4)


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("behind", {}, "where must return True, False, 'before' or 'after', got 'behind'"),
        ("before", {"pool": "binomial3"}, "where returned 'before': only BlurPool filters"),
    ],
)
def test_a_position_that_where_may_not_return_is_named(place, options, message):
    f = antialias(model, where=lambda site: place, **options)
    with pytest.raises(InputError, match=message):
        f(PARAMS, X)


def test_a_filter_that_passes_most_of_what_aliases_is_reported_and_warned_of():
    def f(x):
        return x[:, ::4, ::4]

    (row,) = antialias.report(antialias(f, 4), X)
    assert "filter_size=4 passes 79% of the Nyquist frequency of stride 4" in row.reason
    with pytest.warns(UserWarning, match=r"antialias at .*: it hardly filters: .*'auto' fits"):
        antialias(f, 4)(X)
    (row,) = antialias.report(f, X)
    assert not row.reason
    np.testing.assert_allclose(antialias(f)(X), blur_pool(X, "auto", 4), atol=1e-6)

    def linear(x):
        return conv(x, PARAMS["block"]["kernel"], 4)

    x, after = normal(2, 16, 16, 8), antialias(linear, 4, before=False)
    (row,) = antialias.report(after, x)
    assert "no nonlinearity before" in row.reason
    assert "filter_size=4 passes 79%" in row.reason
    with pytest.warns(UserWarning, match="filter_size=4 passes 79%"):
        after(x)


@pytest.mark.parametrize("pool", ["binomial3", box])
def test_another_pool_replaces_the_blur(pool):
    f = antialias(lambda x: x[:, ::2, ::2], pool=pool)
    expected = blur_pool(X, 3) if pool == "binomial3" else box(2)(X)
    np.testing.assert_allclose(f(X), expected, atol=1e-5)


def test_branches_of_one_input_take_one_decision():
    def block(x):
        return x[:, ::2, ::2] + jax.nn.relu(conv(x, PARAMS["block"]["kernel"], 2))

    x = normal(3, 8, 8, 8)
    pool = LargestPhase(2)
    choice = pool.choose(x)
    expected = pool(x, choice) + pool(jax.nn.relu(conv(x, PARAMS["block"]["kernel"], 1)), choice)
    f = antialias(block, pool=LargestPhase)
    np.testing.assert_allclose(jax.jit(f)(x), expected, atol=1e-4)
    assert not any(row.reason for row in antialias.report(f, x))


def test_a_pool_that_chooses_its_grid_is_reported():
    f = antialias(lambda x: x[:, ::2, ::2], pool=LargestPhase)
    assert "chooses its grid by itself" in antialias.report(f, X)[0].reason


def test_sites_inside_shard_map_are_left_alone():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    f = jax.shard_map(lambda x: x[:, ::2, ::2], mesh=mesh, in_specs=spec, out_specs=spec)
    (row,) = antialias.report(f, X)
    assert "inside shard_map" in row.reason
    with pytest.warns(UserWarning, match="antialias changes nothing"):
        np.testing.assert_array_equal(jax.jit(antialias(f))(X), X[:, ::2, ::2])


def test_a_function_without_strides_gets_a_warning():
    with pytest.warns(UserWarning, match="changes nothing in <lambda>: no strided"):
        antialias(lambda x: x + 1)(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter_size": 0}, "filter_size must be an integer of at least 1"),
        ({"filter_size": (3, 3)}, "filter_size must be an integer"),
        ({"padding": "same"}, "padding must be one of"),
        ({"pool": "binomal3"}, "binomal3"),
        ({"pool": 3}, "a pool is a registered name"),
        ({"where": "conv"}, "where must be a function"),
        ({"min_channels": -1}, "min_channels must be an integer"),
        ({"filter_size": "wide"}, "filter_size must be an integer"),
        ({"before": 1}, "before must be True or False"),
        ({"stem": "drop"}, "stem must be one of leave, blur, dense; got 'drop'"),
        ({"stem": "blur", "pool": "binomial3"}, "stem='blur': only BlurPool filters without"),
        ({"before": True, "pool": "binomial3"}, "leave out pool"),
        ({"padding": "zero", "pool": "binomial3"}, "padding is an option of BlurPool"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        antialias(model, **options)


def test_only_functions_without_gradients_are_taken():
    with pytest.raises(InputError, match="antialias takes a function, got a dict"):
        antialias(PARAMS)  # pyright: ignore[reportArgumentType]
    gradient = jax.grad(lambda x: model(PARAMS, x).sum())
    with pytest.raises(InputError, match=r"jax.grad\(aa_flax.antialias\(loss\)\)"):
        antialias(gradient)(X)


def test_a_pool_with_weights_is_refused():
    pool = lambda stride, features, rngs: WeightedBox(stride, features=features, rngs=rngs)  # noqa: E731
    with pytest.raises(InputError, match="has weights, and antialias adds no parameters"):
        antialias(lambda x: x[:, ::2, ::2], pool=pool)(X)


def test_layers_of_a_model_have_the_names_of_its_parameters():
    layers = [nnx.Conv(8, 8, (3, 3), strides=2, rngs=nnx.Rngs(i)) for i in (0, 1)]
    names = [
        row.site.layer for row in antialias.report(nnx.Sequential(*layers), normal(2, 9, 9, 8))
    ]
    assert names == ["layers.0.kernel", "layers.1.kernel"]


def test_a_model_is_a_function():
    model = nnx.Sequential(nnx.Conv(3, 8, (3, 3), strides=2, rngs=nnx.Rngs(0)), jax.nn.relu)
    dense = nnx.Conv(3, 8, (3, 3), padding=((0, 1), (0, 1)), rngs=nnx.Rngs(0))
    expected = blur_pool(jax.nn.relu(dense(X)))
    np.testing.assert_allclose(antialias(model, min_channels=0)(X), expected, atol=1e-5)
