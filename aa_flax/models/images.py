"""What images a net takes, and one line that says so where it is given others."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.errors import InputError

NamedBlocks = Callable[[nnx.Module], Iterator[tuple[str, Callable]]]

_BOUNDS = (96, 192, 384)  # pixels that export is told to suppose where less will not do
_LARGEST = 2048  # pixels; a net that needs more than this has a smallest size nobody asks for


def check_images(x: object, *, channels: int = 3) -> None:
    """Refuses what is no batch of images `(N, H, W, channels)` of floats.

    Sizes that are unknown while exporting are not compared.

    Raises:
        InputError: another rank, order of axes, number of channels or type.
    """
    if not isinstance(x, jax.Array | np.ndarray):
        if not hasattr(x, "__jax_array__"):
            raise InputError(_expected(channels, f"a {type(x).__name__}", "give a JAX array"))
        x = jnp.asarray(x)
    given = f"shape {tuple(x.shape)} of {x.dtype}"
    advice = wrong_shape(x.shape, channels)
    if advice is None and not jnp.issubdtype(x.dtype, jnp.floating):
        advice = "convert and normalise them first, e.g. by aa_flax.preprocess"
    if advice is not None:
        raise InputError(_expected(channels, given, advice))


def _expected(channels: int, given: str, advice: str) -> str:
    return f"the net takes images (N, H, W, {channels}) of normalised floats, got {given}; {advice}"


def wrong_shape(shape: tuple, channels: int) -> str | None:
    """What to do about this shape; None: it is right."""
    if len(shape) == 3:
        return "one image needs a batch axis: x[None]"
    if len(shape) != 4:
        return "give four axes"
    if not isinstance(shape[3], int) or shape[3] == channels:
        return None
    if shape[1] == channels:
        return "channels come last: x.transpose(0, 2, 3, 1)"
    if shape[3] == 1:
        return f"repeat the grey channel: jnp.repeat(x, {channels}, axis=3)"
    return f"give {channels} channels"


def smallest_size(model: nnx.Module) -> int | None:
    """Side of the smallest square image that the net's blocks take, in evaluation.

    Found by tracing alone: nothing is computed, and the model may be one of shapes.

    Returns:
        pixels; None: the blocks take no size up to 2048.
    """
    graphdef, state = nnx.split(model)
    if graphdef not in _found:
        _found[graphdef] = _search(lambda size: _takes(graphdef, state, size, model))
    return _found[graphdef]


_found: dict[nnx.GraphDef, int | None] = {}


def _search(takes: Callable[[int], bool]) -> int | None:
    size = 1
    while not takes(size):
        size *= 2
        if size > _LARGEST:
            return None
    too_small = size // 2
    while size - too_small > 1:
        middle = (size + too_small) // 2
        too_small, size = (too_small, middle) if takes(middle) else (middle, size)
    return size


def _takes(graphdef: nnx.GraphDef, state: nnx.State, size: int, model) -> bool:
    def run(state, x):
        net = nnx.merge(graphdef, state)
        net.eval()
        for _, block in net.named_blocks():
            x = block(x)

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    image = jax.ShapeDtypeStruct((1, size, size, model.image_channels), jnp.float32)
    try:
        jax.eval_shape(run, shapes, image)
    except ValueError:
        return False
    return True


def refuse_too_small(model, block: str, shape: tuple, error: ValueError) -> None:
    """Says that images are too small, if that is why a block failed; else it does nothing.

    Raises:
        InputError: with the net, its smallest size, and what failed in which block.
    """
    height, width = shape[1:3]
    if not (isinstance(height, int) and isinstance(width, int)):
        return
    smallest = smallest_size(model)
    if smallest is not None and min(height, width) < smallest:
        raise InputError(
            f"images of {height}x{width} pixels are too small for {model.name or 'this net'}, "
            f"which takes {smallest}x{smallest} or more; in its block {block}: {error}"
        ) from error


def unbounded(model, shape: tuple) -> InputError:
    """The error of sizes that export leaves open and that might be too small."""
    bound = exportable_bound(model)
    advice = (
        f", or a bound: jax.export.symbolic_shape('n, h, w', constraints={_at_least(bound)})"
        if bound
        else ""
    )
    return InputError(
        f"images of {shape[1]}x{shape[2]} pixels may be too small for {model.name or 'this net'}; "
        f"give export the numbers{advice}"
    )


def _at_least(bound: int) -> list[str]:
    return [f"h >= {bound}", f"w >= {bound}"]


def exportable_bound(model: nnx.Module) -> int | None:
    """The least of a few sizes from which on every size is seen to be large enough.

    It may be more than the smallest size, since what is known of an open one is that bound alone:
    of `(h - 1) // 2 + 1`, say, no more than what follows from it by the rules of arithmetic.
    """
    smallest = smallest_size(model)
    if smallest is None:
        return None
    graphdef, state = nnx.split(model)
    try:
        for bound in (smallest, *(size for size in _BOUNDS if size > smallest)):
            if _takes_from(graphdef, state, bound, model):
                return bound
    except InputError:  # its head wants sizes in numbers
        return None
    return None


def _takes_from(graphdef: nnx.GraphDef, state: nnx.State, bound: int, model) -> bool:
    def run(state, x):
        net = nnx.merge(graphdef, state)
        for _, block in net._named_blocks():
            x = block(x)
        return net.forward_head(x)

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    sizes = jax.export.symbolic_shape("n, h, w", constraints=_at_least(bound))
    try:
        jax.eval_shape(
            run, shapes, jax.ShapeDtypeStruct((*sizes, model.image_channels), jnp.float32)
        )
    except jax.errors.InconclusiveDimensionOperation:
        return False
    return True
