"""`create_model`: a model by its name, with random, published or given weights."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, overload

from flax import nnx
from jax.typing import DTypeLike

from aa_flax.errors import InputError, boolean
from aa_flax.models import registry
from aa_flax.models.backbone import Backbone
from aa_flax.models.classifier import Classifier
from aa_flax.nn.initializers import initialised
from aa_flax.weights.building import complete
from aa_flax.weights.locate import locate

Pretrained = bool | Literal["pretrained", "finetuned", "scratch", "baseline"] | str | Path | None


@overload
def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: Pretrained = False,
    features_only: Literal[False] = False,
    rngs: nnx.Rngs | None = None,
    dtype: DTypeLike | None = None,
    **options,
) -> Classifier: ...


@overload
def create_model(
    name: str,
    *,
    pretrained: Pretrained = False,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    rngs: nnx.Rngs | None = None,
    dtype: DTypeLike | None = None,
    **options,
) -> Backbone: ...


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: Pretrained = False,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    rngs: nnx.Rngs | None = None,
    dtype: DTypeLike | None = None,
    **options,
) -> Classifier | Backbone:
    """Builds a model: `resnet50` is torchvision's, `resnet50_lpf4` its antialiased version.

    Args:
        name: one of `list_models()`.
        num_classes: number of logits; default: that of the given weights, or 1000. 0 leaves the
            last layer out: the model returns its input. With weights for another number, the last
            layer alone is random.
        pretrained: `True` or `"pretrained"` loads the published weights as the original does:
            fine-tuned ones where there are any, else those trained from scratch, and torchvision's
            for a baseline; they are downloaded once. `"finetuned"` and `"scratch"` choose;
            `"baseline"` starts an antialiased model from torchvision's weights. A path loads a
            weights file (safetensors or torch's; `FILE#ema` its averaged weights; a trunk's alone
            will do, with `num_classes` or `features_only`) or a run's best checkpoint.
            `hf-hub:OWNER/NAME@REVISION#sha256=HEX` loads those of a repository on the Hugging Face
            hub, and compares their hash; revision and hash are optional.
        features_only: return the trunk alone, which gives a feature map of each resolution.
        out_indices: the maps to give, 0 the finest, -1 the coarsest; default: all.
        rngs: random keys of the initial weights and of dropout; default `nnx.Rngs(0)`.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
        options: further arguments of the model's class, e.g. `pool_only=False`.

    Returns:
        The model, in evaluation mode (call `model.train()` to train it). `model(x)` maps images
        `(N, H, W, 3)`, normalized floats, to logits `(N, num_classes)`; with `features_only` to a
        list of maps `(N, h, w, c)`, which `model.feature_info` describes.

    Raises:
        InputError: an unknown name (the message suggests the nearest) or option, or weights that
            are out of reach, damaged, or of another model or other options.

    Examples:
        >>> import aa_flax
        >>> model = aa_flax.create_model("resnet18_lpf4", num_classes=10)
        >>> model.fc.kernel.shape
        (512, 10)
        >>> trunk = aa_flax.create_model("resnet18_lpf4", features_only=True)
        >>> [(level.channels, level.reduction) for level in trunk.feature_info]
        [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)]
    """
    registry.parse_name(name)  # reports a misspelled name before weights are looked for
    rngs = nnx.Rngs(0) if rngs is None else rngs
    if not isinstance(rngs, nnx.Rngs):
        raise InputError(f"rngs are nnx.Rngs, e.g. nnx.Rngs(0), got {rngs!r}")
    trunk_only = boolean("features_only", features_only)
    if trunk_only and num_classes:
        raise InputError(
            f"features_only=True gives no logits, got num_classes={num_classes}; leave one out"
        )
    if out_indices is not None and not trunk_only:
        raise InputError("out_indices are of feature maps; give features_only=True with them")
    build = partial(registry.build, name, dtype=dtype, **options)
    classes = 0 if trunk_only else num_classes
    if pretrained is None or pretrained is False:
        classes = 1000 if classes is None else classes
        model = initialised(lambda rngs: build(num_classes=classes, rngs=rngs), rngs)
        model.eval()
    else:
        source = locate(pretrained, model=name)
        weights = source.load(options)
        if pretrained == "baseline":  # the only word for weights of another model
            weights = weights._replace(model="", options=None)
        model = complete(weights, build, classes, rngs, trunk_only=trunk_only)
        model.config = replace(model.config, **source.config_changes())
    return Backbone(model, out_indices) if trunk_only else model
