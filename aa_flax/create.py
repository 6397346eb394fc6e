"""`create_model`: a net by its name, with random, published or given weights."""

from pathlib import Path
from typing import Literal

from flax import nnx
from jax.typing import DTypeLike

from aa_flax.errors import InputError
from aa_flax.initialisers import initialised
from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from aa_flax.weights.building import complete
from aa_flax.weights.locate import locate


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool
    | Literal["pretrained", "finetuned", "scratch", "baseline"]
    | str
    | Path
    | None = False,
    rngs: nnx.Rngs | None = None,
    dtype: DTypeLike | None = None,
    **options,
) -> Classifier:
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
            any suffix; `FILE#ema` its averaged weights) or the folder of a run. Published weights
            are downloaded once (see `aa_flax.weights.pretrained`).
        rngs: random keys of the initial weights and of dropout; default `nnx.Rngs(0)`.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
        options: further arguments of the net's class, e.g. `pool_only=False`.

    Returns:
        The model, in evaluation mode (call `model.train()` to train it). `model(x)` maps images
        `(N, H, W, 3)`, normalised floats, to logits `(N, num_classes)`.

    Raises:
        InputError: an unknown name (the message suggests the nearest) or option, or weights that
            cannot be had, are damaged, or are of another net or of other options.
    """
    registry.parse_name(name)  # a misspelt name shows before weights are looked for
    rngs = nnx.Rngs(0) if rngs is None else rngs
    if not isinstance(rngs, nnx.Rngs):
        raise InputError(f"rngs are nnx.Rngs, e.g. nnx.Rngs(0), got {rngs!r}")

    def build(num_classes: int, rngs: nnx.Rngs) -> Classifier:
        return registry.build(name, num_classes=num_classes, dtype=dtype, rngs=rngs, **options)

    if pretrained is None or pretrained is False:
        classes = 1000 if num_classes is None else num_classes
        model = initialised(lambda rngs: build(classes, rngs), rngs)
        model.eval()
        return model
    held = locate(pretrained, model=name).hold(options)
    if pretrained == "baseline":  # the one word that means another net's
        held = held._replace(model="", options=None)
    return complete(held, build, num_classes, rngs)
