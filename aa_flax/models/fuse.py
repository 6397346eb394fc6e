"""`fuse`: folds batch norms into the convolutions before them, for inference.

Which batch norm follows which convolution is inferred from the model's traced program, so no family
has to declare it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from aa_flax.errors import InputError
from aa_flax.models.backbone import Backbone, Path, part_at, replace_part
from aa_flax.models.classifier import Classifier
from aa_flax.models.shapes import functional, images_like
from aa_flax.nn.layers import BatchNorm, Conv, Folded
from aa_flax.transform.jaxpr import programs, sub_jaxprs

Net = TypeVar("Net", Classifier, Backbone)


def fuse(model: Net, *, image_size: int = 224) -> Net:
    """Returns a model of the same function for inference, its batch norms folded.

    At inference, batch norm is a per-channel affine map that the preceding convolution can absorb.
    It is folded where that is exact: where it reads nothing but the output of one convolution,
    nothing else reads that, and no other layer has their variables. Others stay (DenseNet's before
    a ReLU and a convolution, say), so the logits are the same up to rounding for every model.

    The convolutions of the new model have a bias, and its folded batch norms are gone: it can
    neither be trained nor saved under the model's name. Fusing it again changes nothing.

    Args:
        model: a model or backbone in evaluation mode; neither it nor its arrays are changed.
        image_size: side of an image the model takes, in pixels; its program is traced for one.

    Raises:
        InputError: a model in training mode or not of this package, or images of a wrong size.

    Examples:
        >>> import aa_flax, jax.numpy as jnp
        >>> model = aa_flax.create_model("mobilenet_v2_lpf3", num_classes=3, width_mult=0.1)
        >>> fused = aa_flax.fuse(model, image_size=32)
        >>> images = jnp.ones((1, 32, 32, 3))
        >>> bool(jnp.allclose(fused(images), model(images), atol=1e-4))
        True
    """
    if not isinstance(model, Classifier | Backbone):
        raise InputError(
            f"fuse takes a model of aa_flax.create_model, got a {type(model).__name__}"
        )
    for path, layer in nnx.iter_modules(model):
        if isinstance(layer, BatchNorm) and not layer.use_running_average:
            raise InputError(
                f"the batch norm {'.'.join(map(str, path))} normalizes by each batch, since the "
                "model is in training mode; call model.eval() before aa_flax.fuse(model)"
            )
    fused = nnx.clone(model)
    for conv_path, norm_path in _foldable(model, image_size):
        _fold(part_at(fused, conv_path), part_at(fused, norm_path))
        replace_part(fused, norm_path, Folded())
    return fused


def _fold(conv: nnx.Conv, norm: BatchNorm) -> None:
    """Folds in float64, by NumPy, which compiles nothing for each shape."""
    scale, bias, mean, var, kernel = (
        np.asarray(v[...], np.float64)
        for v in (norm.scale, norm.bias, norm.mean, norm.var, conv.kernel)
    )
    factor = scale / np.sqrt(var + norm.epsilon)
    before = 0 if conv.bias is None else np.asarray(conv.bias[...], np.float64)
    # Replaced, not written to: the array may be the user's own NumPy array.
    conv.kernel.set_value(jnp.asarray(kernel * factor, jnp.float32))
    conv.bias = nnx.Param(jnp.asarray((before - mean) * factor + bias, jnp.float32))
    conv.use_bias = True


# Traced programs do not say which layer an operation belongs to. So the convolutions of a copy of
# the model name their output, and its batch norms their input, by `checkpoint_name`, an identity
# that is visible in the program.


class _MarkedConv(Conv):
    number: int

    def __call__(self, *args, **kwargs) -> Array:
        mark = f"aa_flax.fuse conv {self.number}"
        return checkpoint_name(super().__call__(*args, **kwargs), mark)


class _MarkedNorm(BatchNorm):
    number: int

    def __call__(self, x: Array) -> Array:
        return super().__call__(checkpoint_name(x, f"aa_flax.fuse norm {self.number}"))


_MARKED = {nnx.Conv: _MarkedConv, Conv: _MarkedConv, BatchNorm: _MarkedNorm}


def _foldable(model: Classifier | Backbone, image_size: int) -> list[tuple[Path, Path]]:
    """Returns paths of convolutions and of the batch norms that can be folded into them."""
    marked = nnx.clone(model)
    classifier = marked.net if isinstance(marked, Backbone) else marked
    classifier.remat = False
    paths = []
    for path, layer in list(nnx.iter_modules(marked)):
        if type(layer) in _MARKED:
            layer.__class__ = _MARKED[type(layer)]
            layer.number = len(paths)  # pyright: ignore[reportAttributeAccessIssue]
            paths.append(path)
    forward, state = functional(marked, lambda model, x: model(x))
    image = images_like(classifier, 1, image_size, image_size)
    program = jax.make_jaxpr(forward)(state, image).jaxpr
    variables = [path for path, _ in nnx.to_flat_state(state)]
    arguments = zip(variables, program.invars, strict=False)
    read_once = {path for path, variable in arguments if _count_uses(program, variable) == 1}
    marks = [mark for inner in programs(program) for mark in _marks(inner)]
    times = Counter(mark for mark, _ in marks)
    found = []
    for mark, only_reader in marks:
        if only_reader is None or times[mark] != 1 or times[only_reader] != 1:
            continue
        (_, kind, conv), (_, reader, norm) = mark.split(), only_reader.split()
        pair = paths[int(conv)], paths[int(norm)]
        # A variable that two layers share has one path, so a pair that shares lacks some.
        count = sum(len(jax.tree.leaves(nnx.state(part_at(marked, path)))) for path in pair)
        own = [path for path in variables if path[:-1] in pair and path in read_once]
        if (kind, reader) == ("conv", "norm") and len(own) == count:
            found.append(pair)
    return found


def _marks(program: Any) -> Iterator[tuple[str, str | None]]:
    """Yields the marks of a program, not of those it calls, each with the mark alone to read it."""
    for eqn in program.eqns:
        if eqn.primitive.name == "name" and eqn.params["name"].startswith("aa_flax.fuse "):
            (result,) = eqn.outvars
            readers = [e for e in program.eqns if any(v is result for v in e.invars)]
            alone = len(readers) == 1 and not any(v is result for v in program.outvars)
            mark = alone and readers[0].primitive.name == "name"
            yield eqn.params["name"], readers[0].params["name"] if mark else None


def _count_uses(program: Any, variable: Any) -> int:
    """Counts the operations that read a variable; more than one where that is unknown."""
    count = sum(v is variable for v in program.outvars)
    for eqn in program.eqns:
        for i, read in enumerate(eqn.invars):
            if read is variable:
                inner = [jaxpr for jaxpr, _ in sub_jaxprs(eqn)]
                same = len(inner) == 1 and len(inner[0].invars) == len(eqn.invars)
                count += _count_uses(inner[0], inner[0].invars[i]) if same else 1 + len(inner)
    return count
