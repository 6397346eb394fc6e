"""`create_model`: a net by its name, with random, published or given weights."""

from collections.abc import Sequence
from dataclasses import replace
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
    """Builds a net: `resnet50` is torchvision's, `resnet50_lpf4` its antialiased version.

    Args:
        name: one of `list_models()`.
        num_classes: number of logits; default: that of the given weights, or 1000; 0: no last
            layer, the net gives what comes before it. With weights for another number, the last
            layer alone stays random.
        pretrained: `True` or `"pretrained"` takes the published weights as the original does:
            fine-tuned ones where there are any, else those trained from scratch, and torchvision's
            for a baseline. `"finetuned"` and `"scratch"` choose; `"baseline"` starts an antialiased
            net from torchvision's weights. A path takes a weights file (safetensors or torch's, of
            any suffix; `FILE#ema` its averaged weights; a trunk's alone will do, with `num_classes`
            or `features_only`) or the folder of a run. Published weights are downloaded once (see
            `aa_flax.weights.pretrained`). `hf-hub:OWNER/NAME@REVISION` takes those of a repository
            on the Hugging Face hub, `#sha256=HEX` behind it compares its hash.
        features_only: the trunk alone, which gives a feature map of each resolution.
        out_indices: which of these maps, 0 the finest, -1 the coarsest; default: all.
        rngs: random keys of the initial weights and of dropout; default `nnx.Rngs(0)`.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
        options: further arguments of the net's class, e.g. `pool_only=False`.

    Returns:
        The model, in evaluation mode (call `model.train()` to train it). `model(x)` maps images
        `(N, H, W, 3)`, normalised floats, to logits `(N, num_classes)`; with `features_only` to a
        list of maps `(N, h, w, c)`, which `model.feature_info` describes.

    Raises:
        InputError: an unknown name (the message suggests the nearest) or option, or weights that
            cannot be had, are damaged, or are of another net or of other options.
    """
    registry.parse_name(name)  # a misspelt name shows before weights are looked for
    rngs = nnx.Rngs(0) if rngs is None else rngs
    if not isinstance(rngs, nnx.Rngs):
        raise InputError(f"rngs are nnx.Rngs, e.g. nnx.Rngs(0), got {rngs!r}")
    if boolean("features_only", features_only):
        if num_classes:
            raise InputError(
                f"features_only=True gives no logits, got num_classes={num_classes}; leave one out"
            )
        net = _classifier(name, 0, pretrained, rngs, dtype, options, trunk_only=True)
        return Backbone(net, out_indices)
    if out_indices is not None:
        raise InputError("out_indices are of feature maps; give features_only=True with them")
    return _classifier(name, num_classes, pretrained, rngs, dtype, options)


def _classifier(
    name: str,
    num_classes: int | None,
    pretrained: Pretrained,
    rngs: nnx.Rngs,
    dtype: DTypeLike | None,
    options: dict,
    *,
    trunk_only: bool = False,
) -> Classifier:
    def build(num_classes: int, rngs: nnx.Rngs) -> Classifier:
        return registry.build(name, num_classes=num_classes, dtype=dtype, rngs=rngs, **options)

    if pretrained is None or pretrained is False:
        classes = 1000 if num_classes is None else num_classes
        model = initialised(lambda rngs: build(classes, rngs), rngs)
        model.eval()
        return model
    weights = locate(pretrained, model=name)
    held = weights.hold(options)
    if pretrained == "baseline":  # the one word that means another net's
        held = held._replace(model="", options=None)
    model = complete(held, build, num_classes, rngs, trunk_only=trunk_only)
    model.config = replace(model.config, **weights.config_changes())
    return model
