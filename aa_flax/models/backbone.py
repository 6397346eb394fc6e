"""Backbones: feature maps of a model at several resolutions, for detection and segmentation."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.shapes import (
    FeatureLevel,
    check_images,
    feature_info,
    functional,
    images_like,
)

_SIZE = 1024  # side of the traced image, large enough for every model


class Backbone(nnx.Module):
    """The trunk of a model: maps images `(N, H, W, 3)` to feature maps of several resolutions.

    Layers after the last of these maps are removed, with their weights.

    Attributes:
        net: the model without these layers.
        out_indices: levels that it returns, in this order.
        feature_info: name, channels and reduction of each of them.

    Args:
        net: a model of `create_model`, which loses layers and should not be used any more.
        out_indices: levels of the model, 0 the finest, -1 the coarsest; default: all.

    Raises:
        InputError: a level that the model does not have.

    Examples:
        >>> import aa_flax
        >>> from flax import nnx
        >>> model = nnx.eval_shape(lambda: aa_flax.create_model("resnet18_lpf4"))
        >>> backbone = aa_flax.Backbone(model, out_indices=(1, -1))
        >>> [(level.name, level.channels, level.reduction) for level in backbone.feature_info]
        [('layer1.1', 64, 4), ('layer4.1', 512, 32)]
    """

    def __init__(self, net: Classifier, out_indices: Sequence[int] | None = None):
        levels = feature_info(net)
        self.out_indices = _checked(net, levels, out_indices)
        self.feature_info: tuple[FeatureLevel, ...] = tuple(levels[i] for i in self.out_indices)
        self.net = net
        _remove(self, _unused(self))

    @property
    def name(self) -> str:
        """Name by which `create_model` built it."""
        return self.net.name

    @property
    def config(self) -> ModelConfig:
        """The images it expects, and the origin of its weights."""
        return self.net.config

    def __call__(self, x: Float[Array, "N H W 3"]) -> list[Float[Array, "N h w c"]]:
        """Returns the maps, in the order of `feature_info`.

        Raises:
            InputError: anything but a batch of normalised images, or images that are too small.
        """
        check_images(x, channels=self.net.image_channels)
        images, maps = x.shape, {}
        wanted = {level.name for level in self.feature_info}
        for name, block in self.net._feature_blocks():
            x = self.net._run_block(name, block, x, images)
            if name in wanted:
                maps[name] = x
            if len(maps) == len(wanted):
                break
        return [maps[level.name] for level in self.feature_info]


def _checked(
    net: Classifier, levels: tuple[FeatureLevel, ...], indices: Sequence[int] | None
) -> tuple[int, ...]:
    """Returns the requested levels, counted from the finest."""
    count = len(levels)
    if indices is None:
        return tuple(range(count))
    several = isinstance(indices, list | tuple | range | np.ndarray) and len(indices) > 0
    if not several or not all(_is_integer(i) and -count <= i < count for i in indices):
        known = ", ".join(f"{i} (1/{level.reduction})" for i, level in enumerate(levels))
        raise InputError(
            f"out_indices are levels of {net.name or type(net).__name__}, of {known}; got "
            f"{indices!r}"
        )
    return tuple(int(i) % count for i in indices)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


Path = tuple[Any, ...]


def _unused(backbone: Backbone) -> dict[Path, bool]:
    """Returns for each variable, by its path, whether the output does not depend on it."""
    forward, state = functional(backbone, lambda backbone, x: backbone(x))
    leaves, tree = jax.tree.flatten(state)
    jaxpr = jax.make_jaxpr(forward)(state, images_like(backbone.net, 1, _SIZE, _SIZE)).jaxpr
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    unused = [id(variable) not in needed for variable in jaxpr.invars[: len(leaves)]]
    marked = nnx.to_flat_state(jax.tree.unflatten(tree, unused))
    return {path: bool(variable.get_value()) for path, variable in marked}


def _remove(module: nnx.Module, unused: dict[Path, bool]) -> None:
    """Replaces every part whose variables are all unused by None."""
    parts = enumerate(module) if isinstance(module, nnx.List) else list(vars(module).items())
    for name, part in parts:
        if not isinstance(part, nnx.Module | nnx.List):
            continue
        inside = {path[1:]: flag for path, flag in unused.items() if path[0] == name}
        if inside and all(inside.values()):
            if isinstance(module, nnx.List):
                module[int(name)] = None
            else:
                setattr(module, str(name), None)
        elif any(inside.values()):
            _remove(part, inside)
