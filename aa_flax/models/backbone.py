"""Backbones: feature maps of a model at several resolutions, for detection and segmentation."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import ModelConfig
from aa_flax.models.shapes import FeatureLevel, check_images, feature_info, functional, images_like

_SIZE = 1024  # side of the traced image, large enough for every model


class Backbone(nnx.Module):
    """The trunk of a model: maps images `(N, H, W, 3)` to feature maps of several resolutions.

    Layers after the last of these maps are removed, with their weights.

    Attributes:
        feature_info: name, channels and reduction of each map that it returns.

    Args:
        net: a model of `create_model`, which loses layers and should not be used any more.
        out_indices: levels of the model, 0 the finest, -1 the coarsest; default: all.

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
        self.out_indices = _checked(out_indices, net)
        self.feature_info: tuple[FeatureLevel, ...] = tuple(levels[i] for i in self.out_indices)
        self.net = net
        for path in _unused_parts(self):
            replace_part(self, path, None)

    @property
    def name(self) -> str:
        """Name by which `create_model` built it."""
        return self.net.name

    @property
    def config(self) -> ModelConfig:
        """The images it expects, and the origin of its weights."""
        return self.net.config

    def __call__(self, x: Float[Array, "N H W 3"]) -> list[Float[Array, "N h w c"]]:
        """Returns the maps of normalised images, in the order of `feature_info`."""
        check_images(x, channels=self.net.image_channels)
        names = [level.name for level in self.feature_info]
        return self.net._maps_named(names, self.net._feature_blocks(), x)


def _checked(indices: Sequence[int] | None, net: Classifier) -> tuple[int, ...]:
    """Returns the requested levels, counted from the finest."""
    count = len(levels := feature_info(net))
    if indices is None:
        return tuple(range(count))

    several = isinstance(indices, list | tuple | range | np.ndarray) and len(indices) > 0
    are_integers = several and all(
        isinstance(i, int | np.integer) and not isinstance(i, bool) for i in indices
    )
    if not are_integers or not all(-count <= i < count for i in indices):
        known = ", ".join(f"{i} (1/{level.reduction})" for i, level in enumerate(levels))
        raise InputError(
            f"out_indices are levels of {net.name or type(net).__name__}, of {known}; got "
            f"{indices!r}"
        )
    return tuple(int(i) % count for i in indices)


Path = tuple[Any, ...]  # of a part or variable in its model, by attributes and numbers


def _unused_parts(backbone: Backbone) -> set[Path]:
    """Returns the largest parts with variables of which the output depends on none."""
    forward, state = functional(backbone, lambda backbone, x: backbone(x))
    program = jax.make_jaxpr(forward)(state, images_like(backbone.net, 1, _SIZE, _SIZE)).jaxpr
    _, used = dce_jaxpr(program, [True] * len(program.outvars))
    used_by_path = [*zip((path for path, _ in nnx.to_flat_state(state)), used, strict=False)]
    kept = {path[:i] for path, is_used in used_by_path if is_used for i in range(len(path))}
    parts = {path[:i] for path, _ in used_by_path for i in range(1, len(path))} - kept
    return {path for path in parts if path[:-1] in kept}


def part_at(module: Any, path: Path) -> Any:
    """Returns the part of a model at a path."""
    for name in path:
        module = module[name] if isinstance(name, int) else getattr(module, name)
    return module


def replace_part(module: Any, path: Path, part: nnx.Module | None) -> None:
    """Puts another part, or none, at a path of a model."""
    *owner_path, name = path
    owner = part_at(module, tuple(owner_path))
    if isinstance(name, int):
        owner[name] = part
    else:
        setattr(owner, name, part)
