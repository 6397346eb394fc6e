"""Dispatch by platform: an operation's definition, or a kernel that is faster there.

An operation with several implementations is one JAX primitive. The implementation is chosen when a
program is lowered, for the platform it is compiled for, and only the chosen one is in the program.
The operations are linear in each of their arrays (a blur in one, a convolution in image and
kernel), so every JAX transformation follows: the derivative is the operation itself, once for each
array, and its transposes have an implementation for each platform, too.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, get_abstract_mesh
from jaxtyping import Array

_PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}  # JAX's name: ours
_definitions = jax.make_user_context(False)  # part of the key of `jax.jit`'s cache of traces


@contextmanager
def definitions() -> Iterator[None]:
    """Traces every operation as its definition, whatever the platform.

    For export and for reading programs: a blur is one pad and one grouped convolution, a
    convolution `lax.conv_general_dilated`, a max pool `lax.reduce_window`, without a primitive of
    this package. On CPU that is many times slower. It acts at trace time; a function that was
    jitted outside is traced again.
    """
    with _definitions(True):
        yield


def definitions_are_forced() -> bool:
    """Checks whether `definitions` is in force."""
    return _definitions.value


class Static(partial):
    """A function of arrays with options bound to it, compared and hashed by value."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Hashable, ...]:
        return self.func, *sorted(self.keywords.items())


@dataclass(frozen=True)
class Multilinear:
    """A function that is linear in each of its arrays, and its transposes; hashed by value.

    The transpose for an array maps the other arrays (in order) and the cotangent of the result to
    the array's cotangent. By default they are JAX's.
    """

    function: Callable[..., Array]
    transposes: tuple[Callable[..., Array], ...] = ()

    def by_slot(self, shapes: Sequence[jax.ShapeDtypeStruct]) -> tuple[Callable[..., Array], ...]:
        """Returns the transposes, then the function itself: see `_Operation`."""
        transposes = self.transposes or tuple(
            Transpose(self.function, i, shape) for i, shape in enumerate(shapes)
        )
        return (*transposes, self.function)


@dataclass(frozen=True)
class Unfused:
    """A function whose inputs are written to memory first: XLA fuses nothing into it."""

    function: Callable[..., Array]

    def __call__(self, *arrays: Array) -> Array:
        return self.function(*lax.optimization_barrier(arrays))


def on_one_device() -> bool:
    """Checks that no array can be split over devices.

    A partitioned program gathers what a loop over the batch or a reduction of several arrays reads.
    """
    return jax.device_count() == 1


def apply(definition: Multilinear, kernels: Mapping[str, Multilinear], *arrays: Array) -> Array:
    """Returns `definition.function(*arrays)`, computed by the kernel of the platform if it has one.

    Within `definitions` it is the definition everywhere.
    """
    arrays = tuple(map(jnp.asarray, arrays))
    # Export may leave sizes open; kernels need numbers in all but the first axis.
    sizes_are_open = any(not isinstance(n, int) for x in arrays for n in x.shape[1:])
    if definitions_are_forced() or _types_have_axes(arrays) or sizes_are_open:
        return definition.function(*arrays)
    result = jax.eval_shape(definition.function, *arrays)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*arrays, result))
    by_platform = tuple((name, k.by_slot(shapes[:-1])) for name, k in sorted(kernels.items()))
    operation = _Operation(definition.by_slot(shapes[:-1]), by_platform, shapes)
    return _kernel_p.bind(*arrays, operation=operation, slot=len(arrays))


def materialised(x: Array) -> Array:
    """Returns `x`, and its cotangent, through an optimization barrier on CPU.

    XLA:CPU recomputes a cheap value in every consumer: the sum at the end of a residual block in
    the sum of the next block, and so all sums before it. Elsewhere, and within `definitions`, it is
    the identity.
    """
    same, written = jnp.asarray, lax.optimization_barrier
    return apply(Multilinear(same, (same,)), {"cpu": Multilinear(written, (written,))}, x)


def _types_have_axes(arrays: Sequence[Array]) -> bool:
    """Checks whether types contain mesh axes: Explicit ones, or `shard_map`'s varying ones.

    Only JAX's own operations propagate these. `shard_map(..., check_vma=False)` has no such types.
    """
    explicit = AxisType.Explicit in get_abstract_mesh().axis_types
    manual = (getattr(jax.typeof(x), "manual_axis_type", None) for x in arrays)
    return explicit or any(getattr(axes, "varying", None) for axes in manual)


@dataclass(frozen=True)
class _Operation:
    """One multilinear operation by slots: one for each of its arrays, and the last for its result.

    Function i of an implementation maps the contents of all slots but i, in order, to the contents
    of slot i. The last function is the operation, the others are its transposes, so the transpose
    of any of them is another one of them.
    """

    definitions: tuple[Callable[..., Array], ...]
    kernels: tuple[tuple[str, tuple[Callable[..., Array], ...]], ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]


@dataclass(frozen=True)
class Transpose:
    """The transpose of a multilinear function with respect to one of its arrays."""

    function: Callable[..., Array]
    slot: int
    shape: jax.ShapeDtypeStruct

    def __call__(self, *arrays: Array) -> Array:
        *fixed, cotangent = arrays

        def of_slot(x: Array) -> Array:
            return self.function(*fixed[: self.slot], x, *fixed[self.slot :])

        return jax.linear_transpose(of_slot, self.shape)(cotangent)[0]


@dataclass(frozen=True)
class _Batched:
    """A function mapped over axis 0 of some arrays; summed if its result has no batch axis."""

    function: Callable[..., Array]
    axes: tuple[int | None, ...]
    summed: bool

    def __call__(self, *arrays: Array) -> Array:
        results = jax.vmap(self.function, self.axes)(*arrays)
        return results.sum(0) if self.summed else results


_kernel_p = Primitive("aa_flax_kernel")
_compiled = jax.jit(_kernel_p.bind, static_argnames=("operation", "slot"))


@_kernel_p.def_impl
def _run(*arrays: Array, operation: _Operation, slot: int) -> Array:
    if jax.config.values["jax_disable_jit"]:  # nothing is lowered, so nothing chooses
        return operation.definitions[slot](*arrays)
    return _compiled(*arrays, operation=operation, slot=slot)


@_kernel_p.def_abstract_eval
def _abstract(*_: Any, operation: _Operation, slot: int):
    return jax.core.ShapedArray(operation.shapes[slot].shape, operation.shapes[slot].dtype)


def _jvp(primals, tangents, *, operation: _Operation, slot: int):
    terms = [
        _kernel_p.bind(*primals[:i], tangent, *primals[i + 1 :], operation=operation, slot=slot)
        for i, tangent in enumerate(tangents)
        if not isinstance(tangent, ad.Zero)
    ]
    return _kernel_p.bind(*primals, operation=operation, slot=slot), reduce(ad.add_jaxvals, terms)


def _transpose(cotangent, *arrays, operation: _Operation, slot: int):
    """Puts the cotangent into the result's slot; the slot of the linear array is the result."""
    linear = next(i for i, x in enumerate(arrays) if ad.is_undefined_primal(x))
    results: list[Any] = [None] * len(arrays)
    if isinstance(cotangent, ad.Zero):
        results[linear] = ad.Zero(arrays[linear].aval)
        return results
    slots = [*arrays[:slot], cotangent, *arrays[slot:]]
    target = linear if linear < slot else linear + 1
    del slots[target]
    results[linear] = _kernel_p.bind(*slots, operation=operation, slot=target)
    return results


def _batch(arrays, axes, *, operation: _Operation, slot: int):
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    arrays = [x if i is None else jnp.moveaxis(x, i, 0) for x, i in zip(arrays, axes, strict=True)]
    by_slot = [None if axis is None else 0 for axis in axes]
    by_slot.insert(slot, 0)

    def batched(functions: tuple[Callable[..., Array], ...]) -> tuple[_Batched, ...]:
        return tuple(
            _Batched(function, (*by_slot[:i], *by_slot[i + 1 :]), by_slot[i] is None)
            for i, function in enumerate(functions)
        )

    shapes = tuple(
        s if axis is None else jax.ShapeDtypeStruct((size, *s.shape), s.dtype)
        for s, axis in zip(operation.shapes, by_slot, strict=True)
    )
    kernels = tuple((platform, batched(functions)) for platform, functions in operation.kernels)
    operation = _Operation(batched(operation.definitions), kernels, shapes)
    return _kernel_p.bind(*arrays, operation=operation, slot=slot), 0


def _lowering(platform: str) -> Callable:
    def implementation(*arrays: Array, operation: _Operation, slot: int) -> Array:
        return dict(operation.kernels).get(platform, operation.definitions)[slot](*arrays)

    return mlir.lower_fun(implementation, multiple_results=False)


ad.primitive_jvps[_kernel_p] = _jvp
ad.primitive_transposes[_kernel_p] = _transpose
batching.primitive_batchers[_kernel_p] = _batch
mlir.register_lowering(_kernel_p, _lowering(""))
for _name, _platform in _PLATFORMS.items():
    mlir.register_lowering(_kernel_p, _lowering(_platform), platform=_name)
