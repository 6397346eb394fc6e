"""Backbones: the feature maps of a net at several resolutions, for detection and segmentation."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.images import check_images
from aa_flax.models.levels import FeatureLevel, feature_info
from aa_flax.models.model_config import ModelConfig

_SIZE = 1024  # pixels of the image that is traced; any that all nets take


class Backbone(nnx.Module):
    """The trunk of a net: maps images `(N, H, W, 3)` to feature maps of several resolutions.

    What stands behind the last of these maps is left out, weights and all.

    Attributes:
        net: the net whose trunk it is.
        out_indices: which of the net's levels it gives, in this order.
        feature_info: name, channels and reduction of each of them.

    Args:
        net: a net of `create_model`; parts of it are taken out, so it is of no other use then.
        out_indices: levels of the net, 0 the finest, -1 the coarsest; default: all.

    Raises:
        InputError: a level that the net does not have.
    """

    def __init__(self, net: Classifier, out_indices: Sequence[int] | None = None):
        levels = feature_info(net)
        self.out_indices = _checked(net, levels, out_indices)
        self.feature_info: tuple[FeatureLevel, ...] = tuple(levels[i] for i in self.out_indices)
        self.net = net
        _leave_out(self, _unused(self))

    @property
    def name(self) -> str:
        """The name `create_model` built it by."""
        return self.net.name

    @property
    def config(self) -> ModelConfig:
        """What images it expects, and where its weights come from."""
        return self.net.config

    def __call__(self, x: Float[Array, "N H W 3"]) -> list[Float[Array, "N h w c"]]:
        """The maps, in the order of `feature_info`.

        Raises:
            InputError: what is no batch of normalised images, or images that are too small.
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
    """The levels asked for, counted from the finest."""
    count = len(levels)
    if indices is None:
        return tuple(range(count))
    known = isinstance(indices, list | tuple | range | np.ndarray) and len(indices) > 0
    if not known or not all(_is_integer(i) and -count <= i < count for i in indices):
        there = ", ".join(f"{i} (1/{level.reduction})" for i, level in enumerate(levels))
        raise InputError(
            f"out_indices are levels of {net.name or type(net).__name__}, of {there}; got "
            f"{indices!r}"
        )
    return tuple(int(i) % count for i in indices)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


Path = tuple[Any, ...]


def _unused(backbone: Backbone) -> dict[Path, bool]:
    """Whether each variable of a backbone has no part in what it computes, by its path."""
    graphdef, state = nnx.split(backbone)
    leaves, tree = jax.tree.flatten(state)

    def forward(leaves, x):
        backbone = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
        backbone.eval()
        return backbone(x)

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    image = jax.ShapeDtypeStruct((1, _SIZE, _SIZE, backbone.net.image_channels), jnp.float32)
    jaxpr = jax.make_jaxpr(forward)(shapes, image).jaxpr
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    unused = [id(variable) not in needed for variable in jaxpr.invars[: len(leaves)]]
    marked = nnx.to_flat_state(jax.tree.unflatten(tree, unused))
    return {path: bool(variable.get_value()) for path, variable in marked}


def _leave_out(module: nnx.Module, unused: dict[Path, bool]) -> None:
    """Puts None in the place of every part of which all variables are unused."""
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
            _leave_out(part, inside)
