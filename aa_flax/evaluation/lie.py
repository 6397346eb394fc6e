"""The Lie derivative of a function along a transformation, and the local equivariance error.

Gruver et al., "The Lie Derivative for Measuring Learned Equivariance" (ICLR 2023, Sec. 3 and 4).
T_t moves an image for a time t along a field of velocities v, and G is its derivative at t = 0:

    T_t x(p) = x(p moved backwards along v for a time t),   G x = -(v . grad) x
    Lf(x) = d/dt T_-t f(T_t x) at t = 0  =  Jf(x) G x - G f(x)

Lf is zero if f commutes with T_t near x. A vector stays where it is (G = 0), so there f has to be
invariant; a map moves with the image. Velocities, for a position (y, x) in pixels of the image,
down and right of its centre:

    translation_down (1, 0)   translation_right (0, 1)   rotation (-x, y)   scale (y, x)

So t is in pixels, in radians anticlockwise, and in the logarithm of the size.

The image is one period of the trigonometric polynomial of lowest frequencies through its pixels, as
in `evaluation/shifts.py`, and grad is the derivative of that polynomial: exact, with zero at the
Nyquist frequency of an even size, where cos(pi d) has its maximum. The polynomial continues
periodically: across the border an image whose opposite edges differ has a jump, and a large
derivative next to it. A map of stride s has its positions s pixels apart and its own centre, with
the same field: translations move it by 1/s of its pixels, rotation and scale are as in the image.

A composition of layers h_K ... h_1 has the sum of the derivatives of its layers, each through the
Jacobian of the rest (Sec. 4):  Lf(x) = sum over k of J(h_K ... h_k+1) L h_k (x_k).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aa_flax.errors import InputError, boolean, choice, first_line, real
from aa_flax.ops.filters import along, derivative_matrix

Transformation = Literal["translation_down", "translation_right", "rotation", "scale"]
Layer = Callable[[Array], Array]
Images = Float[Array | np.ndarray, "N H W C"]

# Velocities (down, right) at (y, x), affine: in each row the coefficients of 1, y and x.
FIELDS: dict[Transformation, Float[np.ndarray, "2 3"]] = {
    "translation_down": np.array([[1, 0, 0], [0, 0, 0]], np.float64),
    "translation_right": np.array([[0, 0, 0], [1, 0, 0]], np.float64),
    "rotation": np.array([[0, 0, -1], [0, 1, 0]], np.float64),
    "scale": np.array([[0, 1, 0], [0, 0, 1]], np.float64),
}


def lie_derivative(
    f: Layer, images: Images, transformation: Transformation
) -> Float[Array, "N ..."]:
    """Computes the derivative of T_-t f(T_t x) at t = 0, for each image; see the module.

    Args:
        f: a JAX function of each image to vectors `(N, K)`, compared as they are, or maps
            `(N, h, w, K)`, which move with the image, in pixels of the ratio of both sizes.
        images: floating-point numbers, as `f` takes them.
        transformation: `translation_down` or `translation_right`, by t pixels; `rotation`, by t
            radians; `scale`, by a factor of exp(t).

    Returns:
        The derivative, in the shape of the output of `f`.

    Raises:
        InputError: images or outputs of another kind, an unknown transformation, a map whose size
            is neither a multiple nor an integer fraction of the image's.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from aa_flax import lie_derivative
        >>> images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
        >>> def brightest(x): return x.max((1, 2))
        >>> lie_derivative(brightest, images, "translation_right").shape
        (2, 3)
        >>> def mean(x): return x.mean((1, 2))
        >>> bool(jnp.allclose(lie_derivative(mean, images, "translation_right"), 0, atol=1e-6))
        True
    """
    return lie_derivative_by_layer([f], images, transformation)[0]


def lie_derivative_by_layer(
    layers: Sequence[Layer],
    images: Images,
    transformation: Transformation,
    *,
    strides: Sequence[float] | None = None,
) -> list[Float[Array, "N ..."]]:
    """Computes each layer's share of the Lie derivative of their composition, exactly.

    The share of layer k is J(rest) L h_k (x_k); the shares sum to the derivative of the
    composition. Forward differentiation gives that vector itself, for all layers in one pass with
    one linearisation of each; the paper's random probes estimate its norm by reverse
    differentiation.

    Args:
        layers: functions as of `lie_derivative`, applied one after another, e.g. the blocks of
            `model.named_blocks()` and `model.forward_head`.
        strides: pixels of the image in one of each layer's map (a vector has none, any number will
            do). Default: the ratio of their sizes, an integer or the fraction of one.

    Returns:
        A share for each layer, in the shape of the output of the last.

    Raises:
        InputError: as of `lie_derivative`, of any layer; no layers; not one stride for each layer.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from aa_flax import lie_derivative_by_layer
        >>> images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
        >>> layers = [jnp.tanh, lambda x: x[:, ::2, ::2], lambda x: x.mean((1, 2))]
        >>> shares = lie_derivative_by_layer(layers, images, "scale")
        >>> [share.shape for share in shares]
        [(2, 3), (2, 3), (2, 3)]
    """
    choice("transformation", transformation, Transformation)
    _check_images(images)
    _check_layers(layers, strides)
    return derivatives_by_layer(layers, images, FIELDS[transformation], strides=strides)


def derivatives_by_layer(
    layers: Sequence[Layer],
    images: Images,
    field: Float[Array | np.ndarray, "2 3"],
    *,
    strides: Sequence[float] | None = None,
) -> list[Float[Array, "N ..."]]:
    """Computes `lie_derivative_by_layer` along a field as of `FIELDS`, which may be traced."""
    x = images = jnp.asarray(images)
    shares = []
    moved = _moved(x, field, (1, 1))
    for i, layer in enumerate(layers):
        _check_output(layer, x, i)
        y, jacobian = jax.linearize(layer, x)
        given = None if strides is None else strides[i]
        moved_after = _moved(y, field, _stride(images, y, given))
        *shares, own = jax.vmap(jacobian)(jnp.stack([*shares, moved]))
        shares, x, moved = [*shares, own - moved_after], y, moved_after
    return shares


def local_equivariance_error(
    f: Layer,
    images: Images,
    transformation: Transformation,
    *,
    softmax: bool | None = None,
) -> Float[Array, ""]:
    """Computes the mean of |Lf(x)|^2 / dim over the images (Gruver et al. 2023, Sec. 4).

    Args:
        f: as of `lie_derivative`; by default vectors are logits.
        softmax: apply softmax to the channels of the outputs first, as the paper does for
            classifiers. None: to vectors, not to maps.

    Raises:
        InputError: as of `lie_derivative`; softmax of a single channel, which is constant.

    Examples:
        >>> import jax
        >>> from aa_flax import antialias, local_equivariance_error
        >>> images = jax.random.normal(jax.random.key(0), (2, 32, 32, 4))
        >>> kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 8))
        >>> def f(x):
        ...     x = jax.lax.conv_general_dilated(
        ...         x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ...     )
        ...     return jax.nn.relu(x).mean((1, 2))
        >>> error = local_equivariance_error(f, images, "translation_right")
        >>> bool(local_equivariance_error(antialias(f), images, "translation_right") < error)
        True
    """
    _check_images(images)
    shape = _check_output(f, images, 0)
    with_softmax = len(shape) == 2 if softmax is None else boolean("softmax", softmax)
    if with_softmax and shape[-1] == 1:
        raise InputError(
            f"the softmax of one channel is 1, and the outputs are of shape {shape}; give "
            "softmax=False"
        )
    outputs = (lambda x: jax.nn.softmax(f(x))) if with_softmax else f
    derivative = lie_derivative(outputs, images, transformation)
    return jnp.square(derivative.astype(jnp.promote_types(derivative.dtype, jnp.float32))).mean()


def _moved(x: Array, field: Any, stride: tuple[float, float]) -> Array:
    """Computes G x: of vectors zero, of maps -(v . grad) x in pixels of the map."""
    if x.ndim == 2:
        return jnp.zeros_like(x)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    slope_down, slope_right = (
        along(x.astype(dtype), axis, derivative_matrix(x.shape[axis])) for axis in (1, 2)
    )
    place = [s * (np.arange(n) - (n - 1) / 2) for s, n in zip(stride, x.shape[1:3], strict=True)]
    down, right = jnp.meshgrid(*(jnp.asarray(p, dtype) for p in place), indexing="ij")
    velocity = jnp.einsum(
        "ak,khw->ahw",
        jnp.asarray(field, dtype),
        jnp.stack([jnp.ones_like(down), down, right]),
        precision=lax.Precision.HIGHEST,
    )[..., None]
    moved = velocity[0] / stride[0] * slope_down + velocity[1] / stride[1] * slope_right
    return -moved.astype(x.dtype)


def _stride(images: Array, output: Array, given: float | None) -> tuple[float, float]:
    """Returns the image's pixels in one of a map, down and right."""
    if output.ndim == 2:
        return 1, 1
    sizes = (images.shape[1:3], output.shape[1:3])
    if given is not None:
        return given, given
    if any(a % b and b % a for a, b in zip(*sizes, strict=True)):
        (height, width), (h, w) = sizes
        raise InputError(
            f"a map of {h} x {w} positions of images of {height} x {width} pixels has no integer "
            "stride; give images of another size, or lie_derivative_by_layer strides"
        )
    down, right = (a / b for a, b in zip(*sizes, strict=True))
    return down, right


def _check_images(images: Images) -> None:
    is_array = isinstance(images, jax.Array | np.ndarray)
    shape, dtype = (images.shape, images.dtype) if is_array else ((), type(images).__name__)
    if not is_array or len(shape) != 4 or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"images must be a floating-point array (N, H, W, C), got {dtype} of shape {shape}; "
            "normalise them as the function expects"
        )


def _check_layers(layers: Sequence[Layer], strides: Sequence[float] | None) -> None:
    if not layers:
        raise InputError("layers is empty; give at least one function")
    if strides is None:
        return
    if len(strides) != len(layers):
        raise InputError(
            f"strides must have one number for each of {len(layers)} layers, got {len(strides)}"
        )
    for stride in strides:
        if real("every entry of strides", stride, least=0) == 0:
            raise InputError(f"every entry of strides must be positive, got {tuple(strides)}")


def _check_output(layer: Layer, x: Images, number: int) -> tuple[int, ...]:
    """Infers the shape of a layer's output, which has to be vectors or maps of floats."""
    name = getattr(layer, "__name__", type(layer).__name__)
    try:
        found: Any = jax.eval_shape(lambda x: layer(x), x)  # a ufunc has no weak reference
    except jax.errors.JAXTypeError as error:  # a tracer became an array of NumPy
        raise InputError(
            f"{name} cannot be differentiated, as it is not a function of JAX: {first_line(error)}"
        ) from error
    shape: tuple[int, ...] = getattr(found, "shape", ())
    dtype = getattr(found, "dtype", None)
    is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if not is_float or len(shape) not in (2, 4) or shape[:1] != (len(x),) or 0 in shape:
        what = type(found).__name__ if dtype is None else f"{dtype} of shape {shape}"
        raise InputError(
            f"{name}, layer {number + 1}, returns {what} for {x.shape}; a Lie derivative needs "
            f"floating-point vectors ({len(x)}, K) or maps ({len(x)}, h, w, K)"
        )
    return shape
