"""`canonical(f)`: any function of images made exactly steady under cyclic shifts, untrained.

    position p of the image   ->  roll by -p  -  f  -  maps rolled by p

The position moves with the image, so `f` gets the same pixels however the image was rolled.
`canonical_crop` chooses a window of a larger frame in the same way. `scores.py` has the scores.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Shaped

from aa_flax.errors import InputError, boolean, choice
from aa_flax.ops.blur import one_for_each_axis
from aa_flax.transform.scores import contrast, peaks, seams, unique

_P = ParamSpec("_P")
_R = TypeVar("_R")
Layout = Literal["NHWC", "NCHW"]
_PEAK = 16  # pixels of the window whose contrast gives a phase


def canonical(
    f: Callable[_P, _R],
    stride: int | Sequence[int] | None = None,
    *,
    phase_only: bool = False,
    argnum: int = -1,
    layout: Layout = "NHWC",
    maps: bool = True,
) -> Callable[_P, _R]:
    """Returns a function that is exactly equivariant to cyclic shifts of its images.

    Each image is rolled so that a position which follows its content is at the origin, `f` runs,
    and maps are rolled back. No training; parameters are unchanged.

    The position is one of all `H * W`, so `f` gets the same pixels, to the bit, for every roll of
    an image, whatever `f` computes. It is the crossing of the strongest seam between rows with that
    between columns, which is where opposite sides of a photograph meet: there a rolled photograph
    is rolled back, and one that is not is not changed.

    With `phase_only` images are rolled by at most s - 1 pixels, s the stride, to the phase
    (position mod s) of the window of most contrast. `f` then gets the images of all rolls at
    multiples of s from one another: equivariance to all shifts follows for every `f` that is
    equivariant to those, such as a network of total stride s with circular padding.

    If an image is rolled by d pixels, its logits do not change, and a map of stride t (H / t by
    W / t values) is rolled by floor((d + r) / t), where r < t depends on the image: by d / t where
    t divides d, by d where t is 1.

    Ties are broken by a hash of the whole image as seen from each position: positions that tie
    after that see the same image (but for collisions, of probability 2^-64 a pair), so the choice
    among them does not matter. Near-ties need no care: scores are integers. Derivatives are those
    at the chosen position, which is locally constant.

    Args:
        f: any function of JAX, called with images, which may be uint8 or floating point.
        stride: total stride of `f` in pixels, one number or one for each axis, which the strides of
            its maps divide, and which divides the size of the images. None: that of each map.
        phase_only: whether only the phase within the stride is chosen.
        argnum: position of the images among the positional arguments; the last by default, as in
            `f(images)` and `f(params, images)`.
        layout: of images and maps: `NHWC`, or `NCHW`, as for functions of `aa_flax.from_torch`.
        maps: whether outputs of four axes are maps, to be rolled back. False: outputs remain those
            of the rolled images, as needed for tokens and attention maps.

    Raises:
        InputError: an invalid option; or when it is called: no images there, sizes that the stride
            does not divide, an output of which it is unclear how to roll it back.

    Source: Chaman and Dokmanic, Truly shift-invariant convolutional neural networks, CVPR 2021
    (a phase chosen by the content); here of the image, once, so that it holds for any `f`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from aa_flax import canonical
        >>> weights = jax.random.normal(jax.random.key(0), (64, 10))
        >>> def f(images):  # not equivariant at all
        ...     return images.reshape(len(images), -1) @ weights
        >>> images = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
        >>> rolled = jnp.roll(images, (3, 5), (1, 2))
        >>> bool(jnp.allclose(f(images), f(rolled)))
        False
        >>> bool((canonical(f)(images) == canonical(f)(rolled)).all())
        True
    """
    if not callable(f):
        raise InputError(f"canonical takes a function of images, got a {type(f).__name__}")
    strides = None if stride is None else one_for_each_axis("stride", stride, 2)
    if boolean("phase_only", phase_only) and strides is None:
        raise InputError(
            "canonical with phase_only=True chooses a phase of the stride: give stride"
        )
    axes = spatial_axes(layout)
    boolean("maps", maps)

    @wraps(f, updated=())
    def function(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        images = _images(args, argnum, layout)
        sizes = tuple(images.shape[axis] for axis in axes)
        if strides:
            _check_divisible(sizes, strides)
        phases = strides if phase_only else None
        shifts = _positions(_channels_last(images, layout), phases)
        before, after = args[:argnum], args[argnum:][1:]
        outputs = f(*before, _rolled(images, -shifts, axes), *after, **kwargs)  # pyright: ignore
        if not maps:
            return outputs
        back = partial(_back, shifts, sizes, strides, axes)
        return jax.tree.map(back, outputs)

    return function


class CanonicalCrops(NamedTuple):
    """Windows of frames, the result of `canonical_crop`."""

    images: Shaped[Array, "N h w C"]  # or (N, C, h, w)
    offsets: Int[Array, "N 2"]  # of the window in the frame: (top, left)
    radius: Int[Array, " N"]  # pixels by which the frame may move while the same window wins


def canonical_crop(
    frames: Shaped[Array | np.ndarray, "N H W C"],
    size: int | Sequence[int],
    *,
    layout: Layout = "NHWC",
) -> CanonicalCrops:
    """Crops a window from each frame at a place that follows the content, with a certificate.

    Of all windows of that size in the frame, the one wins whose middle has most contrast: the sum
    of the steps between neighbouring pixels, over a square of a quarter of its shorter side. If the
    frame is another crop of the same scene, moved by no more than `radius` pixels on each axis
    (down or up, and left or right), the same window of the scene wins, to the bit. This is certain,
    whatever is outside the frame: windows that the move adds have their middle inside the frame, so
    their scores are known. One pixel more, and another window may win.

    Args:
        frames: larger than the windows: the wider the margin, the larger the radius. uint8 or
            floating point (which is rounded to 1/64 for the scores, and clipped at 256).
        size: of the windows in pixels, one number or (height, width); at least 8.
        layout: of the frames: `NHWC`, or `NCHW`.

    Returns:
        The windows, their offsets, and each one's radius. It is 0 where another window ties with
        the winner (as in constant images; then the first wins), and where the winner is at the
        border of the frame; and less than half a window. Derivatives are those at the chosen place.

    Raises:
        InputError: an invalid option, or frames smaller than the windows.

    Source: the idea is that of Shifman and Weiss, Lost in translation, ECCV 2024 (robust inference
    by crop selection); score and certificate are ours.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from aa_flax import canonical_crop
        >>> thing = jax.random.normal(jax.random.key(0), (1, 10, 10, 3))
        >>> scene = jnp.zeros((1, 80, 80, 3)).at[:, 34:44, 36:46].set(thing)
        >>> crops = canonical_crop(scene[:, 8:72, 8:72], 32)
        >>> crops.images.shape, crops.offsets.tolist(), crops.radius.tolist()
        ((1, 32, 32, 3), [[14, 18]], [11])
        >>> moved = canonical_crop(scene[:, 0:64, 13:77], 32)
        >>> bool((crops.images == moved.images).all())
        True
    """
    axes = spatial_axes(layout)
    images = _checked(frames, layout)
    sides = one_for_each_axis("size", size, 2)
    full = tuple(images.shape[axis] for axis in axes)
    if min(sides) < 8 or any(n < side for n, side in zip(full, sides, strict=True)):
        raise InputError(
            f"canonical_crop got windows of {_by(sides)} pixels in frames of {_by(full)}; give a "
            "size of at least 8 which fits in the frames"
        )
    offsets, radius = _windows(_channels_last(images, layout), sides)

    def crop(frame: Array, offset: Array) -> Array:
        for axis, start, side in zip(axes, offset, sides, strict=True):
            frame = lax.dynamic_slice_in_dim(frame, start, side, axis - 1)
        return frame

    return CanonicalCrops(jax.vmap(crop)(images, offsets), offsets, radius)


@partial(jax.jit, static_argnums=1)
def _positions(x: Shaped[Array, "N H W C"], strides: tuple[int, ...] | None) -> Int[Array, "N 2"]:
    """Returns the position of each image that is rolled to the origin, or its phase of strides."""
    if strides is None:
        return unique(x, seams(x))
    return unique(x, peaks(x, min(_PEAK, *x.shape[1:3]))) % jnp.array(strides)


def _check_divisible(sizes: Sequence[int], strides: Sequence[int]) -> None:
    if any(n % s for n, s in zip(sizes, strides, strict=True)):
        raise InputError(
            f"canonical got images of {_by(sizes)} pixels, which a stride of {_by(strides)} does "
            "not divide, so that rolls mix its phases; give images of a multiple of it, or no "
            "stride"
        )


@partial(jax.jit, static_argnums=1)
def _windows(
    x: Shaped[Array, "N H W C"], sides: tuple[int, ...]
) -> tuple[Int[Array, "N 2"], Int[Array, " N"]]:
    """Returns the offset of the winning window of each frame, and its radius."""
    middle = min(sides) // 4
    scores = contrast(x, middle)  # also of windows that are partly outside
    first = [(side - middle) // 2 - 1 for side in sides]  # window at offset 0; 1 row of neighbours
    counts = [n - side + 1 for n, side in zip(x.shape[1:3], sides, strict=True)]
    inside = scores[:, *(slice(a, a + n) for a, n in zip(first, counts, strict=True))]
    chosen = inside.reshape(len(x), -1).argmax(1)
    offsets = jnp.stack(jnp.divmod(chosen, counts[1]), 1)
    # The move that brings each place into the frame, on either axis; 0: it is inside.
    moves = [
        jnp.maximum(jnp.maximum(a - at, at - (a + n - 1)), 0)
        for a, n, at in zip(first, counts, map(jnp.arange, scores.shape[1:]), strict=True)
    ]
    entering = jnp.maximum(moves[0][:, None], moves[1])
    known = min(min(a, m - a - n) for a, n, m in zip(first, counts, scores.shape[1:], strict=True))
    rival = scores >= inside.max((1, 2), keepdims=True)
    at = offsets + jnp.array(first)
    rival = rival.at[jnp.arange(len(x)), at[:, 0], at[:, 1]].set(False)
    before_rival = jnp.where(rival, entering, known + 1).min((1, 2)) - 1
    staying = jnp.minimum(offsets, jnp.array(counts) - 1 - offsets).min(1)
    return offsets, jnp.clip(jnp.minimum(before_rival, staying), 0, known)


def _back(shifts, sizes, strides, axes, output: Any) -> Any:
    """Rolls a map back to where its image was."""
    if np.ndim(output) <= 2:  # logits
        return output
    found = tuple(output.shape[axis] for axis in axes) if np.ndim(output) == 4 else ()
    if found == (1, 1):
        return output
    fits = found and min(found) > 0 and not any(n % m for n, m in zip(sizes, found, strict=True))
    if not fits or len(output) != len(shifts):
        raise InputError(
            f"canonical cannot roll back an output of shape {np.shape(output)} for "
            f"{len(shifts)} images of {_by(sizes)} pixels: maps have four axes and a size that "
            "divides the images'; return such maps, or give maps=False to leave all outputs as "
            "they are"
        )
    own = [n // m for n, m in zip(sizes, found, strict=True)]
    if strides and any(s % t for s, t in zip(strides, own, strict=True)):
        raise InputError(
            f"canonical got a map of stride {_by(own)} and a stride of {_by(strides)}; give the "
            "total stride of the function, which the strides of its maps divide"
        )
    return _rolled(output, shifts // jnp.array(own), axes)


def _images(args: Sequence[Any], argnum: int, layout: Layout) -> Array:
    """Returns the images among the arguments."""
    if not -len(args) <= argnum < len(args):
        raise InputError(
            f"canonical needs images as positional argument {argnum}, got {len(args)} positional "
            "arguments; pass the images as one of them, and give its position as argnum="
        )
    return _checked(args[argnum], layout, "; where they are another argument, give its argnum=")


def _checked(images: Any, layout: Layout, hint: str = "") -> Array:
    """Returns images as an array, if they are of four axes."""
    shape = np.shape(images)
    if len(shape) != 4 or 0 in shape or np.iscomplexobj(images):
        raise InputError(
            f"images must be a real array ({', '.join(layout)}) with at least one of each, got "
            f"{type(images).__name__} of shape {shape}{hint}"
        )
    return jnp.asarray(images)


def spatial_axes(layout: Layout) -> tuple[int, int]:
    """Returns the axes of height and width; raises an InputError for an unknown layout."""
    return (1, 2) if choice("layout", layout, Layout) == "NHWC" else (2, 3)


def _channels_last(images: Array, layout: Layout) -> Array:
    return lax.stop_gradient(images if layout == "NHWC" else jnp.moveaxis(images, 1, -1))


@partial(jax.jit, static_argnums=2)
def _rolled(x: Shaped[Array, "N ..."], shifts: Int[Array, "N 2"], axes: tuple[int, int]) -> Array:
    axes = (axes[0] - 1, axes[1] - 1)
    return jax.vmap(lambda x, shift: jnp.roll(x, shift, axes))(x, shifts)


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
