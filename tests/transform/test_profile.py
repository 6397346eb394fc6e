"""The aliasing of every site, its cost and its fraction of the derivative, and budgets."""

from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aa_flax import InputError, antialias, blur_pool, lie_derivative_by_layer
from aa_flax.transform.aliasing import energies
from aa_flax.transform.decisions import Options
from aa_flax.transform.profile import ROUNDS


def every_other(x):
    return x[:, ::2, ::2]


def wave(cycles, size=16, across=0):
    """Returns 1 plus a cosine of a number of cycles down, and across, an image of `size` pixels."""
    phase = 2 * np.pi * np.arange(size) / size
    return 1 + np.cos(cycles * phase[:, None] + across * phase)[None, :, :, None]


@pytest.mark.parametrize(
    ("cycles", "across", "aliased"), [(3, 0, 0), (4, 0, 1), (5, 0, 1), (2, 3, 0), (2, 5, 1)]
)
def test_a_sinusoid_aliases_from_the_new_nyquist_frequency_on(cycles, across, aliased):
    (row,) = antialias.profile(every_other, jnp.asarray(wave(cycles, across=across)))
    assert row.aliasing_energy == pytest.approx(aliased, abs=1e-6)
    kept = wave(cycles, across=across)[:, ::2, ::2]
    ideal = np.full_like(kept, 1) if aliased else kept
    damage = np.sum((kept - ideal) ** 2) / np.sum(ideal**2)
    assert row.damage == pytest.approx(damage, abs=1e-6)


def test_energies_are_those_of_a_slow_transform():
    rng = np.random.default_rng(0)
    x, (h, w) = rng.normal(size=(2, 9, 12, 3)), (9, 12)
    rows, columns = (np.exp(-2j * np.pi * np.outer(*2 * [np.arange(n)]) / n) for n in (h, w))
    spectrum = np.einsum("ui,vj,nijc->nuvc", rows, columns, x)
    u, v = (np.minimum(np.arange(n), n - np.arange(n)) / n for n in (h, w))
    kept = np.logical_and.outer(u < 1 / 6, v < 1 / 4)[None, :, :, None]  # strides 3 and 2
    varies = np.logical_or.outer(u > 0, v > 0)[None, :, :, None]
    power = np.abs(spectrum) ** 2 / (h * w)
    ideal = np.einsum(
        "iu,jv,nuvc->nijc", rows.conj() / h, columns.conj() / w, np.where(kept, spectrum, 0)
    ).real[:, ::3, ::2]
    expected = [
        power.sum(where=~kept),
        power.sum(where=varies),
        np.sum((x[:, ::3, ::2] - ideal) ** 2),
        np.sum(ideal**2),
    ]
    np.testing.assert_allclose(energies(jnp.asarray(x), {1: 3, 2: 2}), expected, rtol=1e-5)


def test_the_ideal_pool_leaves_no_aliasing():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    (row,) = antialias.profile(antialias(every_other, pool="ideal"), images)
    assert row.aliasing_energy < 1e-10
    assert row.damage < 1e-10


def convolve(x, kernel, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=numbers)


def window(x, start, combine, stride):
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, start, combine, (1, 3, 3, 1), (1, stride, stride, 1), pads)


KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 4, 5))
POINTWISE = jax.random.normal(jax.random.key(2), (1, 1, 4, 5))
MAPS = jax.random.normal(jax.random.key(3), (2, 17, 18, 4))  # an odd and an even size


def every_pair(x, reduce):
    return reduce(x[:, :16].reshape(2, 8, 2, 9, 2, 4), (2, 4))


# A function with one site, and the dense map that it subsamples.
SITES = {
    "convolution": (lambda x: convolve(x, KERNEL, 2), lambda x: convolve(x, KERNEL, 1)),
    "1x1": (lambda x: convolve(x, POINTWISE, 2), lambda x: convolve(x, POINTWISE, 1)),
    "max pool": (
        lambda x: window(x, -jnp.inf, lax.max, 2),
        lambda x: window(x, -jnp.inf, lax.max, 1),
    ),
    "average pool": (
        lambda x: window(x / 9, 0.0, lax.add, 2),
        lambda x: window(x / 9, 0.0, lax.add, 1),
    ),
    "slice": (every_other, lambda x: x),
}


@pytest.mark.parametrize("kind", SITES)
def test_each_kind_of_site_subsamples_a_dense_map(kind):
    f, dense = SITES[kind]
    maps = MAPS[:, :, :17]  # "SAME" pads an even size by another width at stride 2 than at 1
    aliased, total, damage, kept = energies(dense(maps), {1: 2, 2: 2})
    (row,) = antialias.profile(f, maps)
    found = row.aliasing_energy, row.damage
    np.testing.assert_allclose(found, (aliased / total, damage / kept), rtol=1e-4)
    np.testing.assert_allclose(dense(maps)[:, ::2, ::2], f(maps), atol=1e-5)


@pytest.mark.parametrize("reduce", [jnp.max, jnp.mean])
def test_a_pool_by_reshape_subsamples_every_window(reduce):
    (row,) = antialias.profile(lambda x: every_pair(x, reduce), MAPS)
    shifted = [MAPS[:, i : 15 + i, j : 17 + j] for i in (0, 1) for j in (0, 1)]
    aliased, total, damage, kept = energies(reduce(jnp.stack(shifted), 0), {1: 2, 2: 2})
    found = row.aliasing_energy, row.damage
    np.testing.assert_allclose(found, (aliased / total, damage / kept), rtol=1e-4)


@pytest.mark.parametrize("pool", [None, "gaussian3", "average", "ideal", "aps_l2"])
def test_what_is_measured_after_a_pool_is_what_it_keeps_positions_of(pool):
    options = Options("auto", "reflect", pool, None, 4, "leave", None)
    maps = MAPS[:, :16, :16]
    sampler = options.sampler((2, 2), maps.shape, (2, 8, 8, 4), maps.dtype)
    filtered = sampler.filtered(maps)
    assert filtered.shape == maps.shape
    np.testing.assert_allclose(filtered[:, ::2, ::2], sampler(maps), atol=1e-5)


def test_every_placement_of_the_blur_reduces_aliasing():
    def f(x):
        return jax.nn.relu(convolve(x, KERNEL, 2))

    (plain,) = antialias.profile(f, MAPS)
    for before in (True, False):
        (row,) = antialias.profile(antialias(f, before=before), MAPS)
        assert row.done
        assert row.aliasing_energy < 0.6 * plain.aliasing_energy
        assert row.damage < 0.6 * plain.damage


def test_sites_in_loops_branches_and_calls_are_measured():
    xs = jax.random.normal(jax.random.key(4), (3, 2, 8, 8, 4))

    def looped(xs):
        return lax.scan(lambda carry, x: (carry, jax.jit(every_other)(x)), 0, xs)[1]

    def branched(x):
        return lax.cond(x.sum() > jnp.inf, lambda x: x[:, :4, :4], every_other, x)

    aliased, total, damage, kept = sum(energies(x, {1: 2, 2: 2}) for x in xs)
    (row,) = antialias.profile(looped, xs)
    found = row.aliasing_energy, row.damage
    np.testing.assert_allclose(found, (aliased / total, damage / kept), rtol=1e-4)
    (row,), (plain,) = (antialias.profile(f, xs[0]) for f in (branched, every_other))
    assert row.aliasing_energy == pytest.approx(plain.aliasing_energy)


def test_a_blur_in_a_model_is_measured_as_one_of_the_transformation():
    (built,) = antialias.profile(lambda x: blur_pool(jax.nn.relu(x)), MAPS)
    (transformed,) = antialias.profile(antialias(lambda x: every_other(jax.nn.relu(x))), MAPS)
    for name in ("aliasing_energy", "damage"):
        assert getattr(built, name) == pytest.approx(getattr(transformed, name), rel=1e-4)


def test_a_constant_map_has_no_aliasing_and_a_look_up_is_not_measured():
    (row,) = antialias.profile(every_other, jnp.full((1, 8, 8, 3), 0.1))
    assert (row.aliasing_energy, row.damage) == (0, pytest.approx(0, abs=1e-10))
    profile = antialias.profile(lambda x: jnp.take(x, jnp.arange(0, 8, 2), axis=1), MAPS)
    assert np.isnan(profile[0].aliasing_energy)
    assert "not measured" in str(profile)


def test_values_that_are_not_finite_are_an_error():
    with pytest.raises(InputError, match=r"the map at .* is not finite"):
        antialias.profile(every_other, MAPS.at[0, 0, 0, 0].set(jnp.nan))


def test_shapes_and_traced_arrays_cannot_be_profiled():
    with pytest.raises(InputError, match=r"antialias\.profile runs the function on numbers"):
        antialias.profile(every_other, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    with pytest.raises(InputError, match=r"at its first call, runs .* outside of jax.jit"):
        jax.jit(antialias(every_other, budget=0.1))(MAPS)


def two_layers(x):
    x = jax.nn.relu(convolve(x, KERNEL, 2))  # dense, it costs about three times as much as f
    return convolve(x, jnp.ones((1, 1, 5, 5)), 2)  # 1x1: its blur is cheap


@pytest.mark.parametrize(("budget", "count"), [(0, 0), (0.3, 1), (10, 2)])
def test_a_budget_pays_for_the_filters_that_fit(budget, count):
    f = antialias(two_layers, budget=budget)
    report = f.report(MAPS)
    assert len(report.antialiased) == count
    flops = jax.jit(two_layers).lower(MAPS).cost_analysis()["flops"]
    assert report.extra_flops <= budget * flops
    assert all("does not pay for it" in row.reason for row in report.left_alone)


def test_a_budget_needs_a_count_of_flops(monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda self: None)
    with pytest.raises(InputError, match=r"FLOPs, which JAX does not count on cpu; choose sites"):
        antialias(two_layers, budget=0.3)(MAPS)


def test_the_sites_of_a_budget_are_chosen_once():
    f = antialias(two_layers, budget=0.3)
    first = f(MAPS)
    np.testing.assert_array_equal(jax.jit(f)(MAPS), first)  # traced for the sites chosen before
    assert len(f.report(jnp.zeros((1, 33, 33, 4))).antialiased) == 1  # of another size


def test_a_budget_keeps_what_where_excludes():
    f = antialias(two_layers, budget=10, where=lambda site: site.window != (1, 1))
    assert [row.site.window for row in f.report(MAPS).antialiased] == [(3, 3)]


@pytest.mark.parametrize("budget", [-0.1, "all", float("nan")])
def test_a_budget_is_a_number_from_0(budget):
    with pytest.raises(InputError, match="budget must be"):
        antialias(every_other, budget=budget)


def composed(layers):
    def f(x):
        for layer in layers:
            x = layer(x)
        return x

    return f


def mean_square(x):
    return jnp.square(x).mean((1, 2))


def shares_by_layer(layers, images, strides=None):
    """Returns each layer's part of |Lf|^2, translated down and right, by `lie_derivative`."""
    products = 0
    for name in ("translation_down", "translation_right"):
        found = np.array(lie_derivative_by_layer(layers, images, name, strides=strides))
        products += np.einsum("knc,nc->k", found, found.sum(0))
    return products / products.sum()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_shares_are_those_of_the_layers_that_subsample_and_sum_to_1_with_the_others(layout):
    with jax.enable_x64(True):
        images = jax.random.normal(jax.random.key(0), (2, 12, 16, 4), jnp.float64)
        kernel = KERNEL.astype(jnp.float64)
        layers = [jnp.tanh, lambda x: convolve(x, kernel, 1), every_other]
        layers += [jnp.sin, lambda x: window(x, -jnp.inf, lax.max, 1), every_other, mean_square]
        expected = shares_by_layer(layers, images)
        is_first = layout == "NCHW"
        given = jnp.moveaxis(images, -1, 1) if is_first else images
        to_last = [lambda x: jnp.moveaxis(x, 1, -1)] if is_first else []
        profile = antialias.profile(composed([*to_last, *layers]), given, lie=layout)
    assert [row.lie_share for row in profile] == pytest.approx([expected[2], expected[5]])
    assert "Lie derivative" in str(profile)
    rest = sum(expected[i] for i in (0, 1, 3, 4, 6))
    assert sum(profile.arrays()["lie_share"]) + rest == pytest.approx(1)


def test_strides_are_known_where_maps_shrink_without_padding():
    layers = [lambda x: x[:, 2:-2, 2:-2] * x[:, 4:, 4:], every_other, jnp.tanh, every_other]
    layers.append(mean_square)
    images = MAPS[:, :16, :16]  # maps of 12, 6 and 3 pixels, of strides 1, 2 and 4
    expected = shares_by_layer(layers, images, strides=(1, 2, 2, 4, 1))
    profile = antialias.profile(composed(layers), images, lie="NHWC")
    assert [row.lie_share for row in profile] == pytest.approx(expected[[1, 3]], rel=1e-3)


def test_a_strided_layer_is_a_dense_one_and_a_subsampling():
    layers = [lambda x: convolve(x, KERNEL, 1), every_other, jax.nn.relu]
    layers += [lambda x: window(x, -jnp.inf, lax.max, 1), every_other, mean_square]
    strided = [lambda x: convolve(x, KERNEL, 2), jax.nn.relu]
    strided += [lambda x: window(x, -jnp.inf, lax.max, 2), mean_square]
    images = MAPS[:, :15, :15]  # "SAME" pads odd sizes by one width
    profiles = (antialias.profile(composed(f), images, lie="NHWC") for f in (layers, strided))
    first, second = ([row.lie_share for row in profile] for profile in profiles)
    assert first == pytest.approx(second, rel=1e-3)


def test_a_map_without_aliasing_has_no_fraction():
    images = jnp.asarray(wave(3) * wave(0, across=2), jnp.float32)
    f = composed([every_other, jnp.tanh, lambda x: x[:, 1, 1]])  # of one position, which varies
    (row,) = antialias.profile(f, images, lie="NHWC")
    assert row.lie_share == pytest.approx(0, abs=1e-4)


def test_a_site_inside_calls_has_the_same_fraction():
    def looped(x):
        x = lax.scan(lambda x, _: (jnp.tanh(x), None), x, None, 2)[0]
        return mean_square(jax.jit(jax.checkpoint(every_other))(x))

    (plain,), (inside,) = (
        antialias.profile(f, MAPS, lie="NHWC")
        for f in (composed([jnp.tanh, jnp.tanh, every_other, mean_square]), looped)
    )
    assert plain.lie_share == pytest.approx(inside.lie_share, rel=1e-4)


def test_milliseconds_are_the_median_difference_of_alternating_runs(monkeypatch):
    # Rounds of the plain function, and of each filter alone; the first is a warm-up.
    rounds = [(9, 9, 9), *[(5, 8, 5.5), (7, 10, 7.5), (50, 8, 9)] * (ROUNDS // 3 + 1)]
    durations = [ms for times in rounds for ms in times]
    clock = accumulate(part for ms in durations for part in (1, ms / 1000))
    monkeypatch.setattr("aa_flax.transform.profile.perf_counter", lambda: next(clock))
    profile = antialias.profile(two_layers, MAPS, milliseconds=True)
    assert [row.extra_milliseconds for row in profile] == pytest.approx([3, 0.5])
    assert "+0.50" in str(profile)


def test_without_options_there_are_no_columns_of_time_and_derivative():
    profile = antialias.profile(two_layers, MAPS)
    assert "ms" not in str(profile)
    assert "Lie" not in str(profile)
    arrays = profile.arrays()
    assert np.isnan([arrays["extra_milliseconds"], arrays["lie_share"]]).all()


def test_a_site_that_is_left_alone_has_no_milliseconds():
    profile = antialias.profile(
        lambda x: convolve(x, KERNEL[:, :, :3], 2), MAPS[..., :3], milliseconds=True
    )
    assert np.isnan(profile[0].extra_milliseconds)


@pytest.mark.parametrize(
    ("f", "images", "layout", "message"),
    [
        (every_other, MAPS, "NHWC", r"vectors of numbers, got float32 of shape \(2, 9, 9, 4\)"),
        (lambda x: x.argmax(1), MAPS, "NHWC", "vectors of numbers, got int32"),
        (jnp.sin, MAPS[0], "NHWC", r"of shape \(N, H, W, C\); got float32 of shape \(17, 18, 4\)"),
        (jnp.sin, MAPS.astype(int), "NCHW", r"shape \(N, C, H, W\); got int32"),
        (jnp.sin, MAPS, "HWC", "layout must be one of NHWC, NCHW; got 'HWC'"),
    ],
)
def test_a_derivative_needs_images_and_vectors(f, images, layout, message):
    with pytest.raises(InputError, match=message):
        antialias.profile(f, images, lie=layout)
