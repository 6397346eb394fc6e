"""`match_statistics`: gives copied weights the batch statistics that fit an antialiased model."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.transform.jaxpr import bind, evaluate, opened
from aa_flax.transform.statistics import Layer, find_layers, flat_program

Module = TypeVar("Module", bound=nnx.Module)
Params = TypeVar("Params")
Images = Float[Array, "N ..."] | Iterable[Float[Array, "N ..."]]
# The mean and the biased variance of every channel, with as many axes as the map.
Moments = tuple[Array, Array]
AtLayer = Callable[[Layer, Array], Array]

_LEAST = 0.01  # of the source's variance; with less, matched biases have made a map constant
_ROUNDING = 1e-10  # a variance that is smaller, relative to the mean's square, is rounding errors
_VARIANCE = re.compile(r"(?<![a-z])(var|variance)$")  # `var`, `running_var`, `moving_variance`


@overload
def match_statistics(model: Module, source: nnx.Module, images: Images) -> Module: ...
@overload
def match_statistics(
    model: Callable[..., Any], source: Callable[..., Any], images: Images, params: Params
) -> Params: ...
def match_statistics(model: Any, source: Any, images: Images, params: Any = None) -> Any:
    r"""Matches the batch statistics of an antialiased model to those of its source, on images.

    For a model with the weights of another one, its source, such as its baseline: the filters
    change the input of every later layer, so copied statistics no longer fit. Each batch norm gets
    the running mean and variance with which its outputs have the source's mean and variance on
    these images, channel by channel, from the first layer to the last. For a channel whose inputs
    have mean `m` and variance `v` in the model, `m_s` and `v_s` in the source, and running
    statistics `mean` and `var` in the source:

        r     = sqrt(v / v_s)
        mean' = m - (m_s - mean) * r
        var'  = (var + epsilon) * r**2 - epsilon

    so that `(x - mean') / sqrt(var' + epsilon)` has the mean and the variance of the source's
    `(x_s - mean) / sqrt(var + epsilon)`. What the source's statistics know of its training set
    is kept, so few images suffice; and batch norms that a converter has folded (mean 0, variance 1)
    stay right, which `recalibrate_batch_norm` would destroy. `r` is 1 for channels that are
    constant on these images, in either model: only their mean is matched. Where `var'` would be
    negative it is 0, and `r` is what belongs to that.

    A model without batch norms has the biases of its maps corrected: `bias' = bias + m_s - m`, of
    the maps that a bias is added to. Fully connected layers are left alone. Variances remain lower;
    where less than a hundredth of the source's would remain (AlexNet, VGG), that is an error.

    Args:
        model, source: two modules of Flax NNX, run in evaluation mode, whose batch norms have the
            same paths and whose weights are the same, `nnx.update(model, nnx.state(source))`; or
            two functions `f(params, images)` of evaluation, `antialias(f)` and `f`, of any
            framework.
        images: normalised as for the model, in its layout: one batch, or several of one size. They
            pass through the models together, in float32 unless the model says otherwise, so memory
            is that of one batch of all of them; a few dozen are enough.
        params: the functions' parameters, any pytree; it is not changed.

    Returns:
        The module, changed in place and in evaluation mode; or new params.

    Raises:
        InputError: other weights than the source's, no batch norm or bias to match or one that is
            called several times, a batch norm in a loop or of other operations, images that are not
            floats or of different sizes, statistics that are not finite, or biases that leave a map
            without its variance; nothing is changed.

    Source: bias correction is that of Nagel et al., Data-Free Quantization, ICCV 2019, Sec. 4.2,
        measured on images; the correction of variances is this package's.

    Examples:
        Of modules, here one that has the other's weights already:

        >>> import aa_flax, numpy as np
        >>> from flax import nnx
        >>> source, model = (nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))
        >>> images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
        >>> model = aa_flax.match_statistics(model, source, images)

        Of functions, a batch norm after a blur, which lowers the variance:

        >>> import jax
        >>> def f(params, x):
        ...     return (x - params["mean"]) * jax.lax.rsqrt(params["var"] + 1e-5)
        >>> def blurred(params, x):
        ...     return f(params, aa_flax.blur_pool(x, 3, stride=1))
        >>> params = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
        >>> new = aa_flax.match_statistics(blurred, f, images, params)
        >>> bool((new["var"] < 0.5).all())
        True
    """
    batch = _one_batch(images)
    if params is not None:
        return _matched(_Program(model, params, batch), _Program(source, params, batch))
    for net in (model, source):
        if not isinstance(net, nnx.Module):
            raise InputError(
                "match_statistics takes two modules of Flax NNX, or two functions f(params, "
                f"images) and their params; got a {type(net).__name__} and no params (for a "
                "module, nnx.split makes such a function)"
            )
    state = _matched(*(_Program(*_function(net), batch) for net in (model, source)))
    model.eval()
    nnx.update(model, state)
    return model


def running_statistics(f: Callable[..., Any], params: Any, images: Any) -> set[str]:
    """Returns the names of the running statistics of all batch norms in `f(params, images)`.

    Raises:
        InputError: a parameter is named as a variance and is not used as that of a batch norm.
    """
    program = _Program(f, params, images)
    found = {
        name
        for key, layer in zip(program.keys, program.layers.values(), strict=True)
        if layer.is_norm
        for name in key
    }
    if unknown := _unknown_variances(program, found):
        raise InputError(
            f"{_listed(unknown)} may be statistics of a batch norm, but the program uses them "
            "otherwise than as (x - mean) / sqrt(var + epsilon), or in a loop; give frozen, to say "
            "which arrays are not trained"
        )
    return found


def _function(module: nnx.Module) -> tuple[Callable[..., Any], nnx.State]:
    """Returns a module in evaluation mode as a function of its state and images, and its state."""
    copy: Any = nnx.clone(module)
    copy.eval()
    graphdef, state = nnx.split(copy)
    return lambda state, images: nnx.merge(graphdef, state)(images), state


def _one_batch(images: Any) -> Array:
    batches = [images] if hasattr(images, "shape") else list(images)
    for batch in batches:
        if not jnp.issubdtype(getattr(batch, "dtype", object), jnp.floating):
            kind = f"{type(batch).__name__} of {getattr(batch, 'dtype', 'other values')}"
            raise InputError(
                f"match_statistics takes batches of normalised images, floats, got a {kind}; "
                "normalise them as for the model, and leave out labels"
            )
    sizes = {batch.shape[1:] for batch in batches if batch.shape[0]}
    if len(sizes) != 1:
        given = " and ".join(map(str, sorted(sizes))) or "none"
        raise InputError(f"match_statistics takes images, all of one size; got {given}")
    return jnp.concatenate([jnp.asarray(batch) for batch in batches])


class _Program:
    """A function's program at some images, with its layers by the names of their parameters."""

    def __init__(self, f: Callable[..., Any], params: Any, images: Array):
        paths, self.tree = jax.tree_util.tree_flatten_with_path(params)
        self.names = [name_of(path) for path, _ in paths]
        self.leaves = {name: leaf for name, (_, leaf) in zip(self.names, paths, strict=True)}
        self.images = images
        jaxpr, self.consts = opened(flat_program(f, params, images))
        # Without unused values: `antialias` may have run a layer on another grid.
        self.jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
        found = find_layers(self.jaxpr, len(paths))
        norms = any(layer.is_norm for layer in found.values())
        self.layers = {key: layer for key, layer in found.items() if layer.is_norm == norms}

    def key(self, layer: Layer) -> tuple[str, ...]:
        return tuple(self.names[i] for i in layer.parameters)

    @property
    def keys(self) -> list[tuple[str, ...]]:
        return [self.key(layer) for layer in self.layers.values()]

    def read(self) -> list[str]:
        """Returns the names of the parameters that the program reads."""
        used = {id(v) for eqn in self.jaxpr.eqns for v in eqn.invars}
        inputs = zip(self.names, self.jaxpr.invars, strict=False)
        return [name for name, variable in inputs if id(variable) in used]

    def needed(self) -> list[str]:
        """Returns the names of the parameters that the layers depend on, without their own."""
        numbers = frozenset().union(*(layer.reads for layer in self.layers.values()))
        of_layers = {name for key in self.keys for name in key}
        return [self.names[i] for i in sorted(numbers) if self.names[i] not in of_layers]

    def run(self, leaves: dict[str, Any], images: Array, at_layer: AtLayer) -> None:
        """Runs the program up to its last layer; a function maps what each layer reads."""

        def run_equation(eqn: Any, operands: list[Any]) -> list[Any]:
            if (layer := self.layers.get(id(eqn))) is not None:
                i = layer.operand
                operands[i] = at_layer(layer, operands[i])
            return bind(eqn, operands)

        inputs = [*(leaves[name] for name in self.names), images]
        evaluate(self.jaxpr, self.consts, inputs, run_equation)


def _matched(model: _Program, source: _Program) -> Any:
    """Returns the parameters of the model with statistics that match, in their pytree."""
    _check(model, source)
    wanted = jax.jit(partial(_moments_of, source))(source.leaves, source.images)
    # Statistics of the source, to be corrected: those of the model have no influence.
    known = {name: source.leaves[name] for key in source.keys for name in key}
    correct = jax.jit(partial(_corrected, model))
    found, kept = jax.device_get(correct(model.leaves | known, model.images, wanted))
    if not all(np.isfinite(x).all() for x in found.values()):
        raise InputError("the statistics of these images are not finite; nothing is changed")
    for (name,), fraction in kept.items():
        if fraction < _LEAST:
            raise InputError(
                f"with matched biases, the map at {name} would have {100 * fraction:.2g} % of the "
                "source's variance, which the filters reduce and biases cannot restore; nothing is "
                "changed. Use the copied weights, and distil or fine-tune"
            )
    return model.tree.unflatten((model.leaves | found).values())


def _moments_of(source: _Program, leaves: dict[str, Any], images: Array) -> dict[Any, Moments]:
    found = {}

    def record(layer: Layer, x: Array) -> Array:
        found[source.key(layer)] = _moments(x, layer.axis)
        return x

    source.run(leaves, images, record)
    return found


def _corrected(
    model: _Program, leaves: dict[str, Any], images: Array, wanted: dict[Any, Moments]
) -> tuple[dict[str, Array], dict[Any, Array]]:
    """Returns corrected parameters by name; each layer is corrected before those after it run.

    Also returns, by the name of a bias, the fraction of the source's variance that its map has.
    """
    found, kept = {}, {}

    def correct(layer: Layer, x: Array) -> Array:
        key = model.key(layer)
        old = [leaves[name] for name in key]
        if not layer.is_norm:
            kept[key] = _moments(x, layer.axis)[1].sum() / wanted[key][1].sum()
        new, x = (_correct_norm if layer.is_norm else _correct_bias)(layer, x, wanted[key], old)
        for name, before, value in zip(key, old, new, strict=True):
            found[name] = value.reshape(before.shape).astype(before.dtype)
        return x

    model.run(leaves, images, correct)
    return found, kept


def _correct_norm(
    layer: Layer, x: Array, wanted: Moments, old: Sequence[Array]
) -> tuple[list[Array], Array]:
    """Returns the new mean and variance; and the map for which the old ones do the same."""
    (m, v), (m_s, v_s) = _moments(x, layer.axis), wanted
    mean, var = (each.astype(m.dtype).reshape(m.shape) for each in old)
    scale = var + layer.epsilon
    varies = (v > _ROUNDING * (m**2 + scale)) & (v_s > _ROUNDING * (m_s**2 + scale))
    ratio = jnp.where(varies, v / jnp.where(varies, v_s, 1), 1)
    new_var = jnp.maximum(scale * ratio - layer.epsilon, 0)
    r = jnp.sqrt((new_var + layer.epsilon) / scale)
    return [m - (m_s - mean) * r, new_var], ((x - m) / r + m_s).astype(x.dtype)


def _correct_bias(
    layer: Layer, x: Array, wanted: Moments, old: Sequence[Array]
) -> tuple[list[Array], Array]:
    """Returns the new bias; and the map for which the old one does the same."""
    shift = wanted[0] - _moments(x, layer.axis)[0]
    return [old[0] + shift.reshape(old[0].shape)], (x + shift).astype(x.dtype)


def _moments(x: Array, axis: int | None) -> Moments:
    """Returns mean and variance of every channel, of shape `(1, .., C, .., 1)`, as x's axes."""
    x = x.astype(np.promote_types(x.dtype, jnp.float32))
    mean = _mean(x, axis)
    return mean, _mean(jnp.square(x - mean), axis)


def _mean(x: Array, axis: int | None) -> Array:
    # Axis by axis: sums are short then, and rounding errors in float32 small.
    for i in reversed(range(x.ndim)):
        x = x if i == axis else x.mean(i, keepdims=True)
    return x


def _check(model: _Program, source: _Program) -> None:
    """Raises an InputError unless the layers of both can be matched."""
    for program in (model, source):
        of_layers = {name for key in program.keys for name in key}
        if unknown := _unknown_variances(program, of_layers):
            raise InputError(
                f"the program uses {_listed(unknown)} otherwise than as (x - mean) / sqrt(var + "
                "epsilon), or in a loop, where match_statistics cannot correct it; use "
                "recalibrate_batch_norm, or fine-tune"
            )
        if not of_layers:
            raise InputError(
                "match_statistics found no batch norm that normalises by running statistics, and "
                "no bias of a map; give models in evaluation mode"
            )
        if repeated := [key for key, times in Counter(program.keys).items() if times > 1]:
            raise InputError(
                f"{_listed(repeated)} is used several times, on maps that one value cannot match; "
                "use recalibrate_batch_norm, or fine-tune"
            )
    if others := set(model.keys) ^ set(source.keys):
        raise InputError(
            f"only one of the models has {_listed(others)}; match_statistics takes two models of "
            "the same layers"
        )
    if changed := [name for name in source.needed() if not _equal(name, model, source)]:
        raise InputError(
            f"the model has other weights than its source, e.g. {_listed(changed)}; copy them "
            "first, by nnx.update(model, nnx.state(source))"
        )


def _unknown_variances(program: _Program, known: set[str]) -> list[str]:
    return [name for name in program.read() if name not in known and _VARIANCE.search(name)]


def _equal(name: str, model: _Program, source: _Program) -> bool:
    a, b = model.leaves.get(name), source.leaves[name]
    return a is b or (a is not None and np.array_equal(a, b))


def _listed(names: Iterable[Any]) -> str:
    names = sorted(name if isinstance(name, str) else name[0] for name in names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def name_of(path: Any) -> str:
    """Returns the name of a parameter by its path in a pytree, e.g. `layer1.bias`."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
