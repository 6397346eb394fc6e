"""`fuse`: a net for inference, its batch norms folded into the convolutions before them.

Which batch norm follows which convolution is read off the net's own program, so that no family has
to say it.
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

Net = TypeVar("Net", Classifier, Backbone)
_Place = tuple[Any, ...]  # of a module in its net, by attributes and numbers


def fuse(model: Net, *, image_size: int = 224) -> Net:
    """A new net of the same function for inference: batch norms folded into convolutions.

    In evaluation a batch norm multiplies each channel by a number and adds one, which the
    convolution before it can do itself. It is folded where that is exact: where it reads nothing
    but what one convolution has computed, nothing else reads that, and no other layer has their
    variables. Others stay as they are (DenseNet's before a ReLU and a convolution, say), so the
    logits are the same up to rounding whatever the net.

    Args:
        model: a model or backbone in evaluation mode; neither it nor its arrays are changed.
        image_size: side of an image the net takes, in pixels; its program is read for one.

    Returns:
        The net, whose convolutions have a bias and whose folded batch norms are gone: it can
        neither be trained nor saved under the net's name. Fusing it again changes nothing.

    Raises:
        InputError: a net in training mode, no net, or a size of image that it does not take.
    """
    if not isinstance(model, Classifier | Backbone):
        raise InputError(
            f"fuse takes a model of aa_flax.create_model, got a {type(model).__name__}"
        )
    for place, layer in nnx.iter_modules(model):
        if isinstance(layer, BatchNorm) and not layer.use_running_average:
            raise InputError(
                f"the batch norm {_dotted(place)} normalises by each batch, since the net is in "
                "training mode; call model.eval() before aa_flax.fuse(model)"
            )
    fused = nnx.clone(model)
    for conv_place, norm_place in _foldable(model, image_size):
        conv, norm = (_at(fused, place) for place in (conv_place, norm_place))
        _fold(conv, norm)
        *owner, name = norm_place
        _put(_at(fused, tuple(owner)), name, Folded())
    return fused


def _fold(conv: nnx.Conv, norm: BatchNorm) -> None:
    """In float64, and by NumPy, which compiles nothing for each shape."""
    scale, bias, mean, var, kernel = (
        np.asarray(v[...], np.float64)
        for v in (norm.scale, norm.bias, norm.mean, norm.var, conv.kernel)
    )
    factor = scale / np.sqrt(var + norm.epsilon)
    before = 0 if conv.bias is None else np.asarray(conv.bias[...], np.float64)
    # Replaced, not written to: the array may be the caller's, who may hold it as one of NumPy.
    conv.kernel.set_value(jnp.asarray(kernel * factor, jnp.float32))
    conv.bias = nnx.Param(jnp.asarray((before - mean) * factor + bias, jnp.float32))
    conv.use_bias = True


class _MarkedConv(nnx.Conv):
    """A convolution whose result bears its place."""

    place: int

    def __call__(self, *args, **kwargs) -> Array:
        return checkpoint_name(super().__call__(*args, **kwargs), f"aa_flax.fuse conv {self.place}")


class _MarkedNorm(BatchNorm):
    """A batch norm whose argument bears its place."""

    place: int

    def __call__(self, x: Array) -> Array:
        return super().__call__(checkpoint_name(x, f"aa_flax.fuse norm {self.place}"))


_MARKED = {nnx.Conv: _MarkedConv, BatchNorm: _MarkedNorm}


def _foldable(model: Classifier | Backbone, image_size: int) -> list[tuple[_Place, _Place]]:
    """Convolutions and the batch norms that can be folded into them."""
    marked = nnx.clone(model)
    net = marked.net if isinstance(marked, Backbone) else marked
    net.remat = False
    places = []
    for place, layer in list(nnx.iter_modules(marked)):
        if type(layer) in _MARKED:
            layer.__class__ = _MARKED[type(layer)]
            layer.place = len(places)  # pyright: ignore[reportAttributeAccessIssue]
            places.append(place)
    graph, state = nnx.split(marked)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, net.image_channels), jnp.float32)
    program = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, image).jaxpr
    variables = [path for path, _ in nnx.to_flat_state(state)]
    read_once = {
        path
        for path, variable in zip(variables, program.invars, strict=False)
        if _count_uses(program, variable) == 1
    }
    marks = [mark for mark in _marks(program) if mark.name.startswith("aa_flax.fuse ")]
    times = Counter(mark.name for mark in marks)
    found = []
    for mark in marks:
        if mark.only_reader is None or times[mark.name] != 1 or times[mark.only_reader] != 1:
            continue
        (_, kind, conv), (_, reader, norm) = mark.name.split(), mark.only_reader.split()
        pair = places[int(conv)], places[int(norm)]
        layers = (_at(marked, place) for place in pair)
        count = sum(len(jax.tree.leaves(nnx.state(layer))) for layer in layers)
        theirs = [path for path in variables if path[:-1] in pair and path in read_once]
        if (kind, reader) == ("conv", "norm") and len(theirs) == count:  # and shares none of them
            found.append(pair)
    return found


class _Mark(NamedTuple):
    """A mark in a program, and the mark that alone reads it, if one does."""

    name: str
    only_reader: str | None


def _marks(program: Any) -> Iterator[_Mark]:
    for equation in program.eqns:
        if equation.primitive.name == "name":
            (result,) = equation.outvars
            readers = [e for e in program.eqns if any(v is result for v in e.invars)]
            alone = len(readers) == 1 and not any(v is result for v in program.outvars)
            mark = alone and readers[0].primitive.name == "name"
            yield _Mark(equation.params["name"], readers[0].params["name"] if mark else None)
        for inner in _inner_programs(equation):
            yield from _marks(inner)


def _count_uses(program: Any, variable: Any) -> int:
    """How many operations read a variable; many, where it goes where that cannot be told."""
    count = sum(v is variable for v in program.outvars)
    for equation in program.eqns:
        for i, read in enumerate(equation.invars):
            if read is variable:
                inner = list(_inner_programs(equation))
                same = len(inner) == 1 and len(inner[0].invars) == len(equation.invars)
                count += _count_uses(inner[0], inner[0].invars[i]) if same else 1 + len(inner)
    return count


def _inner_programs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


def _at(module: Any, place: _Place) -> Any:
    for name in place:
        module = module[name] if isinstance(name, int) else getattr(module, name)
    return module


def _put(owner: Any, name: Any, layer: nnx.Module) -> None:
    if isinstance(name, int):
        owner[name] = layer
    else:
        setattr(owner, name, layer)


def _dotted(place: _Place) -> str:
    return ".".join(map(str, place))
