"""Activations on a finer grid: `antialias(f, activations=2)`."""

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export, lax

from aa_flax import InputError, antialias, blur_pool, match_statistics
from aa_flax.ops import circular_padding
from aa_flax.ops.finer import FineGrid
from aa_flax.transform.aliasing import energies

RNG = np.random.default_rng(0)
GRID = FineGrid(2)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def conv(x, kernel, stride=1, layout="NHWC", padding: Any = "SAME"):
    spatial = layout.strip("NC")
    numbers = (layout, f"{spatial}IO", layout)
    strides = (stride,) * len(spatial)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


K, X = normal(3, 3, 4, 4) / 6, normal(2, 8, 9, 4)
PADS = ((1, 1), (1, 1))


def finely(act, x, grid=GRID):
    return grid.coarser(act(grid.finer(x)))


def rows(f, *args):
    return [row for row in antialias.report(f, *args) if row.site.kind == "activation"]


def close(x, y):
    np.testing.assert_allclose(x, y, atol=1e-5)


ACTIVATIONS = {
    "relu": jax.nn.relu,  # with a derivative rule
    "relu6": jax.nn.relu6,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "leaky_relu": jax.nn.leaky_relu,  # a comparison and a selection
    "elu": jax.nn.elu,
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "square": lambda x: x**2,
    "product": lambda x: x * (1 - x),
    "mask": lambda x: x * (x > 0).astype(x.dtype),
    "softmax": jax.nn.softmax,
    "jit": jax.jit(jnp.tanh),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_of_several_operations_is_filtered_once(name):
    act = ACTIVATIONS[name]
    f = antialias(lambda x: conv(act(conv(x, K) * 2 + 1), K), activations=2)
    y = conv(finely(act, conv(X, K) * 2 + 1), K)
    close(jax.jit(f)(X), y)
    (row,) = rows(f, X)
    assert row.done
    assert (row.site.shape, row.site.channels) == (X.shape, 4)
    up, down = GRID.flops(X.shape)
    assert row.extra_flops == round(up + down)


def moved(x, shifts):
    """Moves a periodic signal by fractions of a pixel, by its Fourier series."""
    for axis, shift in enumerate(shifts, 1):
        size = x.shape[axis]
        waves = np.exp(-2j * np.pi * np.fft.fftfreq(size) * shift)
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        x = np.fft.ifft(np.fft.fft(x, axis=axis) * waves.reshape(shape), axis=axis).real
    return x


@pytest.mark.parametrize("layout", ["NHC", "NCHW", "NHWC", "NDHWC"])
@pytest.mark.parametrize(("factor", "degree"), [(2, 2), (2, 3), (3, 5)])
def test_polynomials_of_degree_below_twice_the_factor_commute_with_all_shifts(
    layout, factor, degree
):
    dims = len(layout) - 2
    sizes = dict(zip(layout, (2, *(7, 9, 5)[:dims], 3), strict=False)) | {"C": 3}
    with jax.enable_x64(True):  # odd sizes: every frequency can be moved
        x = np.zeros([sizes[axis] for axis in layout]) + RNG.standard_normal(
            [sizes[axis] for axis in layout]
        )
        kernel = RNG.standard_normal((1,) * dims + (3, 3))
        spatial = [i for i, axis in enumerate(layout) if axis not in "NC"]
        shifts = [0.0] * (len(layout) - 1)
        for i, shift in zip(spatial, (0.3, 1.6, -0.7), strict=False):
            shifts[i - 1] = shift

        def error(power, **options):
            def f(x):
                return conv(x, kernel, layout=layout) ** power

            run = antialias(f, pool="ideal", **options) if options else f
            y = np.asarray(run(x))
            return np.abs(run(moved(x, shifts)) - moved(y, shifts)).max() / np.abs(y).max()

        assert error(degree, activations=factor) < 1e-13
        assert error(2 * factor, activations=factor) > 1e-6
        assert error(degree) > 1e-2


def test_fractional_shifts_change_relu_less():
    x, wide = RNG.standard_normal((1, 15, 15, 4)), normal(3, 3, 4, 4)

    def error(f):
        with circular_padding():
            y, z = (np.asarray(jax.jit(f)(v)) for v in (x, moved(x, (0.5, 0.5))))
        return np.square(z - moved(y, (0.5, 0.5))).mean() / np.square(y).mean()

    def f(x):
        return jax.nn.relu(conv(x, wide, padding=PADS))

    assert error(antialias(f, activations=2)) < 0.5 * error(f)
    assert error(antialias(f, activations=2, padding="circular")) < 0.5 * error(f)


@pytest.mark.parametrize("name", ["relu", "silu", "square", "elu"])
def test_a_stride_follows_after_the_filter(name):
    act = ACTIVATIONS[name]

    def f(x):
        return act(conv(x, K, 2, padding=PADS) + 1)

    run = antialias(f, activations=2)
    expected = blur_pool(finely(act, conv(X, K) + 1))
    close(jax.jit(run)(X), expected)
    convolution, activation = run.report(X)
    up, down = GRID.flops(X.shape)
    assert activation.extra_flops == round(up + down)
    assert convolution.extra_flops == antialias(f, before=False).report(X)[0].extra_flops
    y = jax.grad(lambda x: jnp.sin(run(x)).sum())(X)
    close(y, jax.grad(lambda x: jnp.sin(blur_pool(finely(act, conv(x, K) + 1))).sum())(X))


def test_it_is_the_same_within_transformations():
    def f(x):
        return conv(jax.nn.silu(conv(x, K)), K)

    y = conv(finely(jax.nn.silu, conv(X, K)), K)
    each = jax.vmap(lambda x: f(x[None])[0])
    for same in (each, jax.checkpoint(f), lambda x: lax.cond(x.sum() < 1e9, f, jnp.zeros_like, x)):
        run = antialias(same, activations=2)
        assert [bool(row.done) for row in rows(run, X)] == [True]
        close(jax.jit(run)(X), y)
    close(jax.vmap(antialias(f, activations=2))(X[None])[0], y)


def test_height_and_width_may_be_open_in_an_export():
    f = antialias(lambda x: jax.nn.relu(conv(x, K, 2, padding=PADS)), activations=2)
    shape = export.symbolic_shape("n, h, w, 4", constraints=("h >= 8", "w >= 8"))
    exported = export.export(jax.jit(f))(jax.ShapeDtypeStruct(shape, jnp.float32))
    close(exported.call(X), f(X))


def test_loops_count_as_often_as_they_run():
    def f(x):
        return lax.scan(lambda c, _: (jnp.tanh(conv(c, K)), None), x, length=3)[0]

    (row,) = rows(antialias(f, activations=2), X)
    assert row.extra_flops == 3 * round(sum(GRID.flops(X.shape)))
    y = X
    for _ in range(3):
        y = finely(jnp.tanh, conv(y, K))
    close(antialias(f, activations=2)(X), y)


@pytest.mark.parametrize("ideal", [True, False])
def test_the_cost_is_that_of_filters_one_axis_after_the_other(ideal):
    """Counted by hand, for 2 maps of 8 x 9 pixels and 4 channels."""
    run = antialias(lambda x: jnp.tanh(conv(x, K)), activations=2, pool="ideal" if ideal else None)
    (row,) = rows(run, X)
    if ideal:  # products with matrices
        rows_up, columns_up = 16 * 8 * 9, 18 * 9 * 16
        rows_down, columns_down = 8 * 16 * 18, 9 * 18 * 8
    else:  # 6 taps for each value between two others; 13 for each remaining value, of 15 x 17
        rows_up, columns_up = 6 * 8 * 9, 6 * 9 * 15
        rows_down, columns_down = 13 * 8 * 17, 13 * 9 * 8
    total = rows_up + columns_up + rows_down + columns_down
    assert row.extra_flops == 2 * (2 * 4) * total


def normalized(x, axes):
    centred = x - x.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    return centred * lax.rsqrt(variance + jnp.full(variance.shape, 1e-5))


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2), (3,)])
def test_normalization_stays_as_it_is(axes):
    f = antialias(lambda x: conv(normalized(conv(x, K), axes), K), activations=2)
    with pytest.warns(UserWarning, match="changes nothing"):
        close(f(X), conv(normalized(conv(X, K), axes), K))
    assert not rows(f, X)
    g = antialias(lambda x: jax.nn.relu(normalized(conv(x, K), axes)), activations=2)
    close(g(X), finely(jax.nn.relu, normalized(conv(X, K), axes)))
    assert len(rows(g, X)) == 1


def test_batch_statistics_can_be_matched():
    def norm(params, x):
        return (x - params["mean"]) * lax.rsqrt(params["var"] + 1e-5)

    def f(params, x):
        return conv(jax.nn.relu(norm(params, conv(x, K))), K)

    params = {"mean": normal(4), "var": jnp.exp(normal(4))}
    matched = match_statistics(antialias(f, activations=2), f, X, params)
    y, fine = norm(params, conv(X, K)), norm(matched, GRID.finer(conv(X, K)))
    for moment in (jnp.mean, jnp.var):
        close(moment(fine, (0, 1, 2)), moment(y, (0, 1, 2)))


def test_a_branch_passes_a_residual_sum_unfiltered():
    def f(x):
        x = conv(x, K)
        return conv(x + jnp.tanh(conv(x, K)), K)

    x = conv(X, K)
    close(antialias(f, activations=2)(X), conv(x + finely(jnp.tanh, conv(x, K)), K))


def test_a_gate_and_its_map_are_one_activation():
    def gated(x):
        return conv(x, K) * jax.nn.sigmoid(conv(x, 2 * K))

    x, gate = (GRID.finer(conv(X, kernel)) for kernel in (K, 2 * K))
    f = antialias(gated, activations=2)
    close(f(X), GRID.coarser(x * jax.nn.sigmoid(gate)))
    (row,) = rows(f, X)
    up, down = GRID.flops(X.shape)
    assert row.extra_flops == round(2 * up + down)


@pytest.mark.parametrize("move", ["transpose", "reshape", "linear", "pool", "concatenate"])
def test_axes_are_followed(move):
    matrix = normal(4, 4)

    def moved(x):
        if move == "transpose":
            return jnp.moveaxis(x, 3, 1)
        if move == "reshape":
            return x.reshape(2, 8, 9, 2, 2)
        if move == "linear":
            return x @ matrix
        if move == "pool":
            return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
        return jnp.concatenate([x, x], -1)

    f = antialias(lambda x: jnp.tanh(moved(conv(x, K))), activations=2)
    flat = moved(conv(X, K))
    flat = jnp.moveaxis(flat, 1, 3) if move == "transpose" else flat.reshape(2, 8, 9, -1)
    y = finely(jnp.tanh, flat)
    close(f(X), jnp.moveaxis(y, 3, 1) if move == "transpose" else y.reshape(f(X).shape))


def test_what_is_no_map_is_left_alone():
    def squeezed(x):  # squeeze and excitation
        x = conv(x, K)
        scale = jax.nn.relu(conv(x.mean((1, 2), keepdims=True), K[:1, :1]))
        return x * scale, jax.nn.relu(x.mean((1, 2)))

    f = antialias(squeezed, activations=2)
    assert not rows(f, X)

    def attention(x):
        x = conv(x, K).reshape(2, 72, 4)
        return jax.nn.softmax(x @ x.mT) @ x, jax.nn.relu(x)

    found = rows(antialias(attention, activations=2), X)
    assert found
    assert {row.reason for row in found} == {"no convolution shows its spatial axes"}
    (row,) = rows(antialias(jax.nn.relu, activations=2), X)
    assert row.reason == "no convolution shows its spatial axes"


def test_small_maps_and_functions_that_combine_positions_are_left_alone():
    (row,) = rows(antialias(lambda x: jnp.tanh(conv(x, K)), activations=2), X[:, :3, :3])
    assert row.reason == "a map of 3x3 is too small for the filters"
    f = antialias(lambda x: jax.nn.relu(conv(x, K)), activations=2)
    (row,) = rows(f, X[:, :3, :3])
    assert (row.done, row.site.primitive) == ("", "max")

    @jax.custom_jvp
    def peaks(x):
        return jnp.exp(x - x.max((1, 2), keepdims=True))

    peaks.defjvp(lambda x, dx: (peaks(*x), peaks(*x)))
    (row,) = rows(antialias(lambda x: peaks(conv(x, K)), activations=2), X)
    assert row.reason == "it combines positions"


def test_where_chooses_activations():
    def f(x):
        return conv(jax.nn.silu(conv(jnp.tanh(conv(x, K)), K)), K)

    run = antialias(f, activations=2, where=lambda site: site.primitive != "tanh")
    close(run(X), conv(finely(jax.nn.silu, conv(jnp.tanh(conv(X, K)), K)), K))
    assert [row.reason for row in rows(run, X)] == ["where said no", ""]
    assert str(run.report(X)).splitlines()[2].split()[1:4] == [
        "(test_where_chooses_activations.<locals>.f)",
        "activation",
        "tanh",
    ]


def test_the_profile_measures_strides_after_activations():
    def f(x):
        return jax.nn.relu(conv(x, K, 2, padding=PADS))

    convolution, activation = antialias.profile(antialias(f, activations=2), X)
    filtered = blur_pool(finely(jax.nn.relu, conv(X, K)), stride=1)
    aliased, total, _, _ = energies(filtered, {1: 2, 2: 2})
    assert convolution.aliasing_energy == pytest.approx(float(aliased / total), rel=1e-4)
    assert np.isnan(activation.aliasing_energy)


@pytest.mark.parametrize("value", [1, 2.5, True, "2"])
def test_a_factor_is_an_integer_of_two_or_more(value):
    with pytest.raises(InputError, match="activations must be"):
        antialias(lambda x: x, activations=value)


def test_a_budget_does_not_pay_for_activations():
    with pytest.raises(InputError, match="give one of them"):
        antialias(lambda x: x, activations=2, budget=0.1)


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.second = nnx.Conv(6, 6, (3, 3), strides=2, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.first(x)))
        return nnx.relu(self.second(x)).mean((1, 2))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.gelu(linen.BatchNorm(use_running_average=False)(linen.Conv(6, (3, 3))(x)))
        return linen.relu(linen.Conv(6, (3, 3), strides=2)(x)).mean((1, 2))


def test_flax_models_in_training():
    graphdef, state = nnx.split(Nnx())
    variables = Linen().init(jax.random.key(0), X)

    def of_nnx(state, x):
        model = nnx.merge(graphdef, state)
        return model(x), nnx.state(model, nnx.BatchStat)

    def of_linen(variables, x):
        return Linen().apply(variables, x, mutable=["batch_stats"])

    f: Any
    for f, given in ((of_nnx, state), (of_linen, variables)):
        run = jax.jit(antialias(f, activations=2))
        assert [row.site.primitive for row in rows(antialias(f, activations=2), given, X)] == [
            "integer_pow",
            "max",
        ]
        (y, statistics), (before, same) = run(given, X), f(given, X)
        assert float(jnp.abs(y - before).max()) > 1e-3
        jax.tree.map(close, statistics, same)
