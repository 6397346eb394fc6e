"""`create_model`: a net by its name."""

from flax import nnx
from jax.typing import DTypeLike

from aa_flax.models import registry
from aa_flax.models.classifier import Classifier


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    rngs: nnx.Rngs | None = None,
    dtype: DTypeLike | None = None,
    **options,
) -> Classifier:
    """Builds a net: `resnet50` is torchvision's, `resnet50_lpf4` its antialiased version.

    Args:
        name: one of `list_models()`.
        num_classes: number of logits.
        rngs: random keys of the initial weights; default `nnx.Rngs(0)`.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
        options: further arguments of the net's class, e.g. `pool_only=False`.

    Returns:
        The model, in evaluation mode (call `model.train()` to train it). `model(x)` maps images
        `(N, H, W, 3)`, normalised floats, to logits `(N, num_classes)`.

    Raises:
        InputError: an unknown name; the message suggests the nearest.
    """
    rngs = nnx.Rngs(0) if rngs is None else rngs
    model = registry.build(name, num_classes=num_classes, dtype=dtype, rngs=rngs, **options)
    model.name = name
    model.eval()
    return model
