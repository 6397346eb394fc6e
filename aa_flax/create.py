"""`create_model`: a net by its name, with random, published or given weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
from flax import nnx
from jax.typing import DTypeLike

from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from aa_flax.weights.convert import model_in, num_classes_of
from aa_flax.weights.files import named_weights
from aa_flax.weights.pretrained import choose, pretrained_file


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool | Literal["finetuned", "scratch"] | str | Path = False,
    rngs: nnx.Rngs | None = None,
    dtype: DTypeLike | None = None,
    **options,
) -> Classifier:
    """Builds a net: `resnet50` is torchvision's, `resnet50_lpf4` its antialiased version.

    Args:
        name: one of `list_models()`.
        num_classes: number of logits; default: that of the given weights, or 1000. With weights for
            another number, the last layer alone stays random.
        pretrained: `True` takes the published weights as the original does: fine-tuned ones where
            there are any, else those trained from scratch, and torchvision's for a baseline.
            `"finetuned"` and `"scratch"` choose. A path takes a `.safetensors` or torch file.
            Published weights are downloaded once (see `aa_flax.weights.pretrained`).
        rngs: random keys of the initial weights and of dropout; default `nnx.Rngs(0)`.
        dtype: type of the computation, e.g. `jnp.bfloat16`; parameters stay float32.
        options: further arguments of the net's class, e.g. `pool_only=False`.

    Returns:
        The model, in evaluation mode (call `model.train()` to train it). `model(x)` maps images
        `(N, H, W, 3)`, normalised floats, to logits `(N, num_classes)`.

    Raises:
        InputError: an unknown name (the message suggests the nearest), or weights that cannot be
            had, are damaged or do not fit.
    """
    registry.parse_name(name)  # a misspelt name shows before weights are looked for
    rngs = nnx.Rngs(0) if rngs is None else rngs

    def build(rngs: nnx.Rngs, num_classes: int) -> Classifier:
        model = registry.build(name, num_classes=num_classes, dtype=dtype, rngs=rngs, **options)
        model.eval()
        return model

    if not pretrained:
        return build(rngs, num_classes or 1000)
    if pretrained is True or str(pretrained) in ("finetuned", "scratch"):
        training = None if pretrained is True else str(pretrained)
        path = pretrained_file(choose(name, training))
    else:
        path = Path(pretrained)
    return _with_weights_of(path, build, num_classes, rngs)


def _with_weights_of(
    path: Path,
    build: Callable[[nnx.Rngs, int], Classifier],
    num_classes: int | None,
    rngs: nnx.Rngs,
) -> Classifier:
    """The net with the weights in a file; what the file does not hold starts as `rngs` says."""

    def abstract(num_classes: int) -> Classifier:
        return nnx.eval_shape(lambda: build(nnx.Rngs(0), num_classes))

    source = model_in(path, abstract)
    num_classes = num_classes or num_classes_of(source)
    model = abstract(num_classes)
    given = named_weights(source)
    for name, variable in named_weights(model).items():
        if given[name].shape == variable.shape:
            variable.set_value(given[name].get_value())
    _initialise_the_rest(model, lambda rngs: build(rngs, num_classes), rngs)
    return model


def _initialise_the_rest(
    model: Classifier, build: Callable[[nnx.Rngs], Classifier], rngs: nnx.Rngs
) -> None:
    """Gives each variable that is a shape alone the value `build` starts it with.

    The compiler leaves out all else that `build` does.
    """
    missing = {
        path: variable
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if isinstance(variable.get_value(), jax.ShapeDtypeStruct)
    }

    @jax.jit
    def initial(rngs_state):
        rngs = nnx.merge(rngs_graph, rngs_state)
        fresh = dict(nnx.to_flat_state(nnx.state(build(rngs))))
        return [fresh[path].get_value() for path in missing], nnx.state(rngs)

    rngs_graph, rngs_state = nnx.split(rngs)
    values, rngs_state = initial(rngs_state)
    for variable, value in zip(missing.values(), values, strict=True):
        variable.set_value(value)
    nnx.update(rngs, rngs_state)
