"""`fuse`: folds batch norms into the convolutions before them, for inference.

Which batch norm follows which convolution is inferred from the model's traced program, so no family
has to declare it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from aa_flax.errors import InputError
from aa_flax.models.backbone import Backbone
from aa_flax.models.classifier import Classifier
from aa_flax.nn.layers import BatchNorm, Folded
from aa_flax.transform.jaxpr import programs, sub_jaxprs

Net = TypeVar("Net", Classifier, Backbone)
_Path = tuple[Any, ...]  # of a module in its model, by attributes and numbers


def fuse(model: Net, *, image_size: int = 224) -> Net:
    """Returns a model of the same function for inference, its batch norms folded.

    At inference, batch norm is a per-channel affine map that the preceding convolution can absorb.
    It is folded where that is exact: where it reads nothing but the output of one convolution,
    nothing else reads that, and no other layer has their variables. Others stay (DenseNet's before
    a ReLU and a convolution, say), so the logits are the same up to rounding for every model.

    Args:
        model: a model or backbone in evaluation mode; neither it nor its arrays are changed.
        image_size: side of an image the model takes, in pixels; its program is traced for one.

    Returns:
        The model, whose convolutions have a bias and whose folded batch norms are gone: it can
        neither be trained nor saved under the model's name. Fusing it again changes nothing.

    Raises:
        InputError: a model in training mode, not a model of this package, or a size of image that
            it does not take.

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
    for conv_path, (*owner_path, name) in _foldable(model, image_size):
        owner = _at(fused, tuple(owner_path))
        _fold(_at(fused, conv_path), _at(owner, (name,)))
        if isinstance(name, int):
            owner[name] = Folded()
        else:
            setattr(owner, name, Folded())
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


# Traced programs do not say which layer an operation belongs to. So the layers of a copy of the
# model name their arrays by `checkpoint_name`, an identity that is visible in the program.


class _MarkedConv(nnx.Conv):
    """A convolution that marks its output with its number."""

    number: int

    def __call__(self, *args, **kwargs) -> Array:
        mark = f"aa_flax.fuse conv {self.number}"
        return checkpoint_name(super().__call__(*args, **kwargs), mark)


class _MarkedNorm(BatchNorm):
    """A batch norm that marks its input with its number."""

    number: int

    def __call__(self, x: Array) -> Array:
        return super().__call__(checkpoint_name(x, f"aa_flax.fuse norm {self.number}"))


_MARKED = {nnx.Conv: _MarkedConv, BatchNorm: _MarkedNorm}


def _foldable(model: Classifier | Backbone, image_size: int) -> list[tuple[_Path, _Path]]:
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
    graph, state = nnx.split(marked)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, classifier.image_channels), "float32")
    program = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, image).jaxpr
    variables = [path for path, _ in nnx.to_flat_state(state)]
    read_once = {
        path
        for path, variable in zip(variables, program.invars, strict=False)
        if _count_uses(program, variable) == 1
    }
    marks = [mark for inner in programs(program) for mark in _marks(inner)]
    times = Counter(mark.name for mark in marks)
    found = []
    for mark in marks:
        if mark.only_reader is None or times[mark.name] != 1 or times[mark.only_reader] != 1:
            continue
        (_, kind, conv), (_, reader, norm) = mark.name.split(), mark.only_reader.split()
        pair = paths[int(conv)], paths[int(norm)]
        # A variable that two layers share has one path, so a pair that shares lacks some.
        count = sum(len(jax.tree.leaves(nnx.state(_at(marked, path)))) for path in pair)
        own = [path for path in variables if path[:-1] in pair and path in read_once]
        if (kind, reader) == ("conv", "norm") and len(own) == count:
            found.append(pair)
    return found


class _Mark(NamedTuple):
    """A mark in a program, and the mark that is its only reader, if there is one."""

    name: str
    only_reader: str | None


def _marks(program: Any) -> Iterator[_Mark]:
    """Yields the marks in a program, not in those that it calls."""
    for eqn in program.eqns:
        if eqn.primitive.name == "name" and eqn.params["name"].startswith("aa_flax.fuse "):
            (result,) = eqn.outvars
            readers = [e for e in program.eqns if any(v is result for v in e.invars)]
            alone = len(readers) == 1 and not any(v is result for v in program.outvars)
            mark = alone and readers[0].primitive.name == "name"
            yield _Mark(eqn.params["name"], readers[0].params["name"] if mark else None)


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


def _at(module: Any, path: _Path) -> Any:
    for name in path:
        module = module[name] if isinstance(name, int) else getattr(module, name)
    return module
