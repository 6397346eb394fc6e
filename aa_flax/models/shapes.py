"""Shapes of images and feature maps: checks of the input, and sizes found by tracing.

Tracing computes no values, so a model may consist of shapes alone (`nnx.eval_shape`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.errors import InputError

if TYPE_CHECKING:
    from aa_flax.models.classifier import Classifier

_POWERS = [2**i for i in range(12)]  # pixels; a model that needs more has no smallest size
_BOUNDS = (96, 192, 384)  # pixels that export may assume where the smallest size is not provable
# Sides of two square images: the difference of their maps gives the reduction, for every stride
# that divides the difference of the sides.
_SIDES = (1024, 1024 + 40320)


class FeatureLevel(NamedTuple):
    """One level of a feature pyramid, named after its last block."""

    name: str
    channels: int
    reduction: int  # factor by which its maps are smaller than the images, on each axis


def check_images(x: object, *, channels: int = 3) -> None:
    """Raises an InputError unless `x` is a batch of floating-point images `(N, H, W, channels)`.

    Sizes that export leaves open are not compared.
    """
    advice, given = "give a JAX array", f"a {type(x).__name__}"
    if hasattr(x, "__jax_array__"):
        x = jnp.asarray(x)
    if isinstance(x, jax.Array | np.ndarray):
        given = f"shape {tuple(x.shape)} of {x.dtype}"
        advice = wrong_shape(x.shape, channels)
        if advice is None and not jnp.issubdtype(x.dtype, jnp.floating):
            advice = "convert and normalise them first, e.g. by aa_flax.preprocess"
    if advice is not None:
        raise InputError(
            f"the model takes images (N, H, W, {channels}) of normalised floats, got {given}; "
            f"{advice}"
        )


def wrong_shape(shape: tuple, channels: int) -> str | None:
    """Returns how to correct a shape of images, or None if it is right."""
    if len(shape) == 3:
        return "one image needs a batch axis: x[None]"
    if len(shape) != 4:
        return "give four axes"
    if not isinstance(shape[3], int) or shape[3] == channels:
        return None
    if shape[1] == channels:
        return "channels come last: x.transpose(0, 2, 3, 1)"
    if shape[3] == 1:
        return f"repeat the grey channel: jnp.repeat(x, {channels}, axis=3)"
    return f"give {channels} channels"


def functional(model: nnx.Module, run: Callable[..., Any]) -> tuple[Callable[..., Any], nnx.State]:
    """Returns `run(model, x)` in evaluation as a function of state and `x`, and the state's shapes.

    The model itself stays as it is: `run` gets a copy.
    """
    graphdef, state = nnx.split(model)

    def function(state: nnx.State, x: Any) -> Any:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        return run(copy, x)

    return function, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def images_like(model: Any, batch: Any, height: Any, width: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and type of a batch of a model's images."""
    return jax.ShapeDtypeStruct((batch, height, width, model.image_channels), jnp.float32)


def _traced(model: Any, run: Callable[..., Any], batch: Any, height: Any, width: Any) -> Any:
    function, state = functional(model, run)
    return jax.eval_shape(function, state, images_like(model, batch, height, width))


def embedding_size(model: Classifier) -> int:
    """Returns the number of values for each image that a model without last layer returns."""
    size = model.config.input_size
    return _traced(model, lambda model, x: model(x), 2, size, size).shape[-1]


_smallest_sizes: dict[nnx.GraphDef, int | None] = {}


def smallest_size(model: nnx.Module) -> int | None:
    """Returns the side of the smallest square image, up to 2048 pixels, that the blocks accept."""
    graphdef, _ = nnx.split(model)
    if graphdef not in _smallest_sizes:
        accepts = partial(_accepts, model)
        enough = next(filter(accepts, _POWERS), None)  # small sizes fail early, large ones are slow
        _smallest_sizes[graphdef] = enough and bisect_left(
            range(enough), True, lo=enough // 2 + 1, key=accepts
        )
    return _smallest_sizes[graphdef]


def _accepts(model: nnx.Module, size: int) -> bool:
    try:
        _traced(model, _last_map, 1, size, size)
    except ValueError:
        return False
    return True


def _last_map(model: Any, x: Any) -> Any:
    for _, block in model._named_blocks():
        x = block(x)
    return x


def refuse_too_small(model: Any, block: str, shape: tuple, error: ValueError) -> None:
    """Raises an InputError if images are too small, if that is why a block failed."""
    height, width = shape[1:3]
    if not (isinstance(height, int) and isinstance(width, int)):
        return
    smallest = smallest_size(model)
    if smallest is not None and min(height, width) < smallest:
        raise InputError(
            f"images of {height}x{width} pixels are too small for {model.name or 'this model'}, "
            f"which takes {smallest}x{smallest} or more; in its block {block}: {error}"
        ) from error


def unbounded(model: Any, shape: tuple) -> InputError:
    """Returns the error about sizes that export leaves open and that may be too small."""
    advice = ""
    if bound := exportable_bound(model):
        constraints = _at_least(bound)
        advice = f", or a bound: jax.export.symbolic_shape('n, h, w', constraints={constraints})"
    return InputError(
        f"images of {shape[1]}x{shape[2]} pixels may be too small for "
        f"{model.name or 'this model'}; give export the numbers{advice}"
    )


def _at_least(bound: int) -> list[str]:
    return [f"h >= {bound}", f"w >= {bound}"]


def exportable_bound(model: nnx.Module) -> int | None:
    """Returns a size from which on export can prove every size to be large enough, or None.

    It may be more than the smallest size: of an open size only the bound is known, and of
    `(h - 1) // 2 + 1`, say, only what follows from the bound by JAX's rules of arithmetic.
    """
    smallest = smallest_size(model)
    if smallest is None:
        return None
    bounds = (smallest, *(size for size in _BOUNDS if size > smallest))
    try:
        return next((bound for bound in bounds if _accepts_from(model, bound)), None)
    except InputError:  # its head needs sizes in numbers
        return None


def _accepts_from(model: nnx.Module, bound: int) -> bool:
    sizes = jax.export.symbolic_shape("n, h, w", constraints=_at_least(bound))
    try:
        _traced(model, lambda model, x: model.forward_head(_last_map(model, x)), *sizes)
    except jax.errors.InconclusiveDimensionOperation:
        return False
    return True


def feature_info(model: Classifier) -> tuple[FeatureLevel, ...]:
    """Returns all levels of a model's feature pyramid, from the finest to the coarsest."""
    traced = {level.name: level for level in _block_levels(model)}
    return tuple(traced[name] for name in model.level_ends())


def last_blocks(model: Classifier) -> list[str]:
    """Returns the names of the last block at each resolution."""
    return list({level.reduction: level.name for level in _block_levels(model)}.values())


_levels: dict[nnx.GraphDef, tuple[FeatureLevel, ...]] = {}


def _block_levels(model: Classifier) -> tuple[FeatureLevel, ...]:
    """Returns every block of the trunk as a level."""

    def run(model: Any, x: Any) -> list[Any]:
        return [map_ for _, map_ in model._maps(model._feature_blocks(), x)]

    graphdef, _ = nnx.split(model)
    if graphdef not in _levels:
        names = [name for name, _ in model.feature_blocks()]
        small, large = (_traced(model, run, 1, side, side) for side in _SIDES)
        _levels[graphdef] = tuple(
            FeatureLevel(name, a.shape[-1], _reduction(model, name, a, b))
            for name, a, b in zip(names, small, large, strict=True)
        )
    return _levels[graphdef]


def _reduction(model: Classifier, name: str, small, large) -> int:
    grown = large.shape[1] - small.shape[1] if small.ndim == 4 else 0
    if not grown:
        raise InputError(
            f"{name} of {model.name or type(model).__name__} gives {small.shape} for images of "
            f"{_SIDES[0]} pixels; a block of features has maps (N, h, w, c) that grow with them"
        )
    return round((_SIDES[1] - _SIDES[0]) / grown)
