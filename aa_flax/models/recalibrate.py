"""`recalibrate_batch_norm`: re-estimates batch statistics for weights in a changed model."""

from collections.abc import Iterable, Iterator
from functools import cache, partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.nn.layers import BatchNorm, refuse_folded
from aa_flax.runtime import replicate, replicated

Module = TypeVar("Module", bound=nnx.Module)
# For each batch norm, in the order of the model's modules, `(3, C)`: the sums over its calls of
# their means and of their variances, and the number of calls.
Sums = list[Any]


def recalibrate_batch_norm(
    model: Module,
    images: Float[Array, "N H W C"] | Iterable[Float[Array, "N H W C"]],
    *,
    mesh: Mesh | None = None,
) -> Module:
    """Re-estimates the running statistics of all batch norms from images, in place.

    For a model that is no longer the function its statistics were gathered in: an antialiased
    model with the weights of its baseline, say. No other variable changes, and the model is
    returned in evaluation mode.

    Every batch passes through the model once, normalized in each batch norm by its own mean and
    biased variance; all else is as in evaluation (no dropout). The new statistics are the means
    over the batches of their means and unbiased variances (Flax's `nnx.BatchNorm`: biased ones), as
    by `torch.optim.swa_utils.update_bn`. Batches count equally, of whatever size, and so do the
    calls of a batch norm that is called several times; one that is never called keeps its
    statistics.

    Args:
        images: normalized as for training: one batch, or several, one after another. With larger
            batches the statistics are nearer to those that evaluation needs.
        mesh: devices that share the work, where each batch is split over them (`put_batch` of
            `aa_flax.runtime`); statistics are those of the whole batch.

    Raises:
        InputError: no batch, a model without batch norms or one of `aa_flax.fuse`, batch norms that
            a converter has folded (mean 0 and variance 1, which is not what their weights were
            trained with; use `match_statistics`), or statistics that are not finite; nothing is
            changed then.

    Examples:
        >>> import aa_flax, numpy as np
        >>> model = aa_flax.create_model("mobilenet_v2_lpf3", num_classes=3, width_mult=0.1)
        >>> images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
        >>> model = aa_flax.recalibrate_batch_norm(model, images)
    """
    check_batch_norms(model)
    model.eval()
    batches = [images] if hasattr(images, "shape") else images
    for layer, (*sums, calls) in zip(_batch_norms(model), _sums(model, batches, mesh), strict=True):
        if calls.all():
            for variable, value in zip((layer.mean, layer.var), sums, strict=True):
                variable.set_value(jax.device_put((value / calls).astype(variable.dtype)))
    return model


def check_batch_norms(model: nnx.Module) -> None:
    """Raises an InputError for a model whose batch norms are folded, or that has none."""
    refuse_folded(model, to="recalibrate")
    if not any(True for _ in _batch_norms(model)):
        raise InputError(
            f"{getattr(model, 'name', '') or type(model).__name__} has no batch norm, so there are "
            "no statistics to estimate; fine-tune it instead"
        )
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, BatchNorm | nnx.BatchNorm) and _looks_converted(layer):
            raise InputError(
                f"the batch norm {'.'.join(map(str, path))} has mean 0 and variance 1 next to a "
                "trained bias: a converter has folded it into the convolution, so statistics of "
                "images would change the model into another; use aa_flax.match_statistics(model, "
                "source, images)"
            )


def _looks_converted(layer: Any) -> bool:
    """Checks for statistics that no images gave, of weights that are not initial values either."""
    if layer.bias is None:
        return False
    mean, var, bias = (np.asarray(each[...]) for each in (layer.mean, layer.var, layer.bias))
    # Variances are 1 - epsilon where a converter kept the function exactly.
    return not mean.any() and bool((abs(var - 1) < 2e-3).all()) and bool(bias.any())


def _batch_norms(model: nnx.Module) -> Iterator[Any]:
    layers = (layer for _, layer in nnx.iter_modules(model))
    return (layer for layer in layers if isinstance(layer, BatchNorm | nnx.BatchNorm))


def _sums(model: nnx.Module, batches: Iterable[Any], mesh: Mesh | None) -> Sums:
    graphdef, state = nnx.split(_measuring(model))
    state = state if mesh is None else replicate(state, mesh)
    total = None
    for batch in batches:
        if not hasattr(batch, "shape"):
            raise InputError(
                f"batches are arrays of normalised images (N, H, W, 3), got a "
                f"{type(batch).__name__}; give the images alone"
            )
        found = _sums_of_batch(graphdef, mesh, state, batch)
        found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
        total = found if total is None else jax.tree.map(np.add, total, found)
    if total is None:
        raise InputError("no images to estimate batch statistics from; give at least one batch")
    if not all(np.isfinite(x).all() for x in total):
        raise InputError("the batch statistics of these images are not finite; nothing is changed")
    return total


@cache  # one class a kind, since jit caches traces by it
def _averaging(kind: Any) -> type:
    """Returns a batch norm of that kind that counts its calls and averages over them."""

    class Averaging(kind):
        @property
        def momentum(self) -> Array:
            return 1 - 1 / self.calls[...]

        def __call__(self, x: Array, use_running_average: object = None, **options: Any) -> Array:
            self.calls.set_value(self.calls[...] + 1)
            return super().__call__(x, **options)

    return Averaging


def _measuring(model: nnx.Module) -> nnx.Module:
    """Returns a copy of the model whose batch norms start at zero and average over their calls."""
    copy: Any = nnx.clone(model)
    for layer in list(_batch_norms(copy)):
        layer.use_running_average = False
        del layer.momentum
        layer.__class__ = _averaging(type(layer))
        for name in ("mean", "var", "calls"):  # `calls` has their shape, to be stacked with them
            setattr(layer, name, nnx.BatchStat(jnp.zeros(layer.mean.shape)))
    return copy


@partial(jax.jit, static_argnums=(0, 1))
def _sums_of_batch(graphdef: Any, mesh: Mesh | None, state: nnx.State, images: Array) -> Sums:
    model: Any = nnx.merge(graphdef, state, copy=True)
    model(images)
    layers = [(layer.calls[...], layer.mean[...], layer.var[...]) for layer in _batch_norms(model)]
    found = [jnp.stack([mean * calls, var * calls, calls]) for calls, mean, var in layers]
    return found if mesh is None else lax.with_sharding_constraint(found, replicated(mesh))
