"""Initial values drawn by NumPy, so that a new model needs no compilation for each shape.

An `Initializer` is also one of Flax's: called with a JAX key it draws by JAX, and can be traced.
`initialised` builds a model of shapes alone, records which variable came from which initializer,
and draws the values by NumPy: from Philox (Salmon et al., SC 2011), a counter-based generator,
keyed by the seed and the variable's name. They are the same on every platform, with every version
of JAX, on any number of devices and for any order of layers. Other values (those of Flax's
initializers, the keys of dropout) are computed by JAX, in one program.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.typing import DTypeLike
from jaxtyping import Array

Module = TypeVar("Module", bound=nnx.Module)
Path = tuple[Any, ...]
_BLOCK = 2**20  # values that one thread draws at a time; another size gives other values
_notes: ContextVar[list[tuple[Array, "Initializer"]] | None] = ContextVar("notes", default=None)


@dataclass(frozen=True)
class Initializer:
    """A distribution of initial values around 0, or a constant, for `kernel_init` and the like.

    With `fan` the scale is divided by the square root of the number of inputs or outputs of a
    kernel `(..., in, out)`.
    """

    kind: Literal["normal", "uniform", "constant"]
    scale: float  # the standard deviation, the bound, or the constant
    fan: Literal["in", "out"] | None = None

    def scale_of(self, shape: tuple[int, ...]) -> float:
        """Returns the scale for a variable of this shape."""
        if self.fan is None:
            return self.scale
        fan = prod(shape[:-1]) if self.fan == "in" else prod(shape[:-2]) * shape[-1]
        return self.scale / sqrt(max(fan, 1))

    def __call__(self, key, shape, dtype: DTypeLike = jnp.float32, out_sharding=None) -> Array:
        """Returns values drawn by JAX, with the signature of Flax's initializers."""
        shape, notes = tuple(shape), _notes.get()
        draw = _Draw(self, shape, jax.dtypes.canonicalize_dtype(dtype))
        if self.kind == "constant":
            value = jax.lax.full(shape, self.scale, draw.dtype, sharding=out_sharding)
        elif notes is None or out_sharding is not None:
            value = _by_jax(key, draw=draw, out_sharding=out_sharding)
        else:
            value = _draw_p.bind(key, draw=draw)
        if notes is not None:
            notes.append((value, self))
        return value

    def draw(self, generator: np.random.Generator, values: np.ndarray, scale: float) -> None:
        """Fills a contiguous float32 array with values of this distribution."""
        if self.kind == "normal":
            generator.standard_normal(out=values, dtype=np.float32)
            values *= scale
        else:
            generator.random(out=values, dtype=np.float32)
            values *= 2 * scale
            values -= scale


class _Draw(NamedTuple):
    initializer: Initializer
    shape: tuple[int, ...]
    dtype: Any


@partial(jax.jit, static_argnames=("draw", "out_sharding"))
def _by_jax(key: Array, *, draw: _Draw, out_sharding=None) -> Array:
    initializer, shape, dtype = draw
    scale, options = initializer.scale_of(shape), {"out_sharding": out_sharding}
    if initializer.kind == "normal":
        return scale * jax.random.normal(key, shape, dtype, **options)
    return jax.random.uniform(key, shape, dtype, -scale, scale, **options)


def _batch(keys: tuple[Array], axes: tuple[int], *, draw: _Draw) -> tuple[Array, int]:
    return jax.vmap(partial(_by_jax, draw=draw), axes)(*keys), 0


# `_by_jax` as a primitive, whose body is traced only if it is compiled: not where NumPy draws.
_draw_p = Primitive("aa_flax_draw")
_draw_p.def_impl(_by_jax)
_draw_p.def_abstract_eval(lambda key, *, draw: jax.core.ShapedArray(draw.shape, draw.dtype))
batching.primitive_batchers[_draw_p] = _batch
mlir.register_lowering(_draw_p, mlir.lower_fun(_by_jax, multiple_results=False))

zeros = Initializer("constant", 0.0)
ones = Initializer("constant", 1.0)
kaiming_normal_fan_in = Initializer("normal", sqrt(2), fan="in")
kaiming_normal_fan_out = Initializer("normal", sqrt(2), fan="out")


def normal(std: float) -> Initializer:
    """Returns a normal distribution of mean 0."""
    return Initializer("normal", std)


def torch_uniform(fan_in: int) -> Initializer:
    """Returns torch's default for weights and biases: uniform in +-1 / sqrt(fan_in)."""
    return Initializer("uniform", 1 / sqrt(fan_in))


def initialised(build: Callable[[nnx.Rngs], Module], rngs: nnx.Rngs) -> Module:
    """Returns the model of `build(rngs)` with initial values; within a trace, `build(rngs)` itself.

    The stream `params` is the seed; all streams advance as in `build`, which is traced.
    """
    if _traced(rngs):
        return build(rngs)
    graphdef, tree, values = _structure_and_values(build, rngs)
    return nnx.merge(graphdef, jax.tree.unflatten(tree, values.values()))


def initial_values(
    build: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs, paths: Collection[Path]
) -> dict[Path, Array]:
    """Returns the values of `initialised` for some variables, by their paths in the model."""
    if _traced(rngs):
        fresh = nnx.to_flat_state(nnx.state(build(rngs)))
        return {path: v.get_value() for path, v in fresh if path in paths}
    return _structure_and_values(build, rngs, paths)[-1]


def abstract(build: Callable[[nnx.Rngs], Module]) -> Module:
    """Returns the model of `build(rngs)` with shapes instead of values."""

    def build_counting() -> Module:
        with _counting_in_python({"default": jax.random.key(0)}, {"default": 0}) as rngs:
            return build(rngs)

    return nnx.eval_shape(build_counting)


def _structure_and_values(
    build: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs, paths: Collection[Path] | None = None
) -> tuple[Any, Any, dict[Path, Array]]:
    """Returns the graph and the state's structure, and values (of `paths`) in its order.

    Advances `rngs`.
    """
    structure: list[Any] = []
    drawn: dict[Path, _Draw | None] = {}  # None: JAX computes it
    counts = {name: int(stream.count[...]) for name, stream in rngs.items()}

    @jax.jit
    def compute(keys):
        token = _notes.set(notes := [])
        try:
            with _counting_in_python(keys, counts) as traced_rngs:
                model = build(traced_rngs)
        finally:
            _notes.reset(token)
        graphdef, state = nnx.split(model)
        structure.extend([graphdef, jax.tree.structure(state)])
        # NumPy draws what is still the array of an initializer.
        noted, others = {id(value): initializer for value, initializer in notes}, []
        for path, variable in nnx.to_flat_state(state):
            if paths is not None and path not in paths:
                continue
            value = variable.get_value()
            initializer = noted.get(id(value))
            drawn[path] = initializer and _Draw(initializer, value.shape, value.dtype)
            if initializer is None:
                others.append(value)
        return others

    seed = _seed(rngs)
    computed = iter(compute({name: stream.key[...] for name, stream in rngs.items()}))
    for name, stream in rngs.items():
        stream.count.set_value(jnp.asarray(np.uint32(counts[name])))
    values = _draw_all({path: draw for path, draw in drawn.items() if draw}, seed)
    values = {path: values[path] if draw else next(computed) for path, draw in drawn.items()}
    graphdef, tree = structure
    return graphdef, tree, values


class _Stream(nnx.RngStream):
    """A stream that counts in Python: tracing the counts can take longer than everything else."""

    drawn: int | None = None  # None: as Flax counts

    def __call__(self) -> Array:
        if self.drawn is None:
            return super().__call__()
        self.drawn += 1
        return jax.random.fold_in(self.key[...], self.drawn - 1)

    def fork(self, **options: Any) -> nnx.RngStream:
        return nnx.RngStream(super().fork(**options).key[...], tag=self.tag)


@contextmanager
def _counting_in_python(keys: dict[str, Array], counts: dict[str, int]) -> Iterator[nnx.Rngs]:
    """Yields random keys for a trace; afterwards they count as in Flax, and `counts` is updated."""
    rngs = nnx.Rngs()
    streams = {name: _Stream(key, tag=name) for name, key in keys.items()}
    for name, stream in streams.items():
        stream.drawn = counts[name]
        setattr(rngs, name, stream)
    yield rngs
    for name, stream in streams.items():
        counts[name], stream.drawn = stream.drawn or 0, None
        stream.count.set_value(jnp.asarray(counts[name], jnp.uint32))


def _traced(rngs: nnx.Rngs) -> bool:
    """Checks whether the keys, or any values computed now, are tracers."""
    leaves = [*jax.tree.leaves(nnx.state(rngs)), jax.device_put(0)]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _seed(rngs: nnx.Rngs) -> bytes:
    """Returns the key and count of the stream `params`, so that each model from it differs."""
    stream = rngs.params
    words = jax.random.key_data(stream.key[...]), stream.count[...]
    return b"".join(np.asarray(word).astype("<u4").tobytes() for word in words)


def _draw_all(drawn: dict[Path, _Draw], seed: bytes) -> dict[Path, Array]:
    """Draws variables in blocks by threads; each block has its own range of the counter."""
    values: dict[Path, np.ndarray] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        blocks = []
        for path, (initializer, shape, dtype) in drawn.items():
            scale = initializer.scale_of(shape)
            if initializer.kind == "constant":
                values[path] = np.full(shape, scale, dtype)
                continue
            values[path] = _aligned(shape)
            flat, name = values[path].reshape(-1), "/".join(map(str, path)).encode()
            key = int.from_bytes(hashlib.sha256(seed + name).digest()[:16], "little")  # 128 bits
            for block in range(-(-flat.size // _BLOCK)):
                generator = np.random.Generator(np.random.Philox(key=key, counter=block << 128))
                part = flat[block * _BLOCK : (block + 1) * _BLOCK]
                blocks.append(threads.submit(initializer.draw, generator, part, scale))
        for block in blocks:
            block.result()
    typed = [v.astype(drawn[path].dtype, copy=False) for path, v in values.items()]
    return dict(zip(values, jax.device_put(typed), strict=True))


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Returns an empty float32 array, aligned so that JAX on CPU adopts its memory uncopied."""
    size, alignment = prod(shape) * 4, 64
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(np.float32).reshape(shape)
