"""The profile of a function: aliasing, cost and share of the Lie derivative at each site.

Aliasing is defined in `aliasing`. The Lie derivative Lf of a translation is how much the outputs
change when the images move by an infinitesimal amount (`aa_flax.lie_derivative`). With G x the
derivative of a moving map (-1 / stride of its slope: a map of stride s moves by 1 / s of its
pixels), S the subsampling of a site and d its dense map, the site contributes to Lf

    J(what follows) (S G d - G S d)

which is zero for every map without aliasing, since S and G commute there. By the chain rule Lf is
the sum of the contributions of all operations (Gruver et al., ICLR 2023, Sec. 4); those that are
no sites, such as nonlinearities and borders padded with zeros, make up the rest. A share is the
mean of contribution . Lf over images and directions, over that of |Lf|^2.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aa_flax.errors import InputError
from aa_flax.ops.filters import along, derivative_matrix
from aa_flax.transform.canonical import Layout, spatial_axes
from aa_flax.transform.sites import Row, cells, table

ROUNDS = 20  # in which every version of a function is timed once


@dataclass(frozen=True)
class ProfileRow(Row):
    """The aliasing at one site, and the outcome of `antialias` there.

    Args:
        aliasing_energy: A, in 0..1; NaN where nothing was measured.
        damage: D; infinite where all that is kept is aliasing.
        extra_milliseconds: additional time of the function with a filter at this site alone; NaN
            where none is added, or without `milliseconds=True`.
        lie_share: the site's share of the Lie derivative of translation, 1 for all of it; negative
            where it compensates for others. NaN where nothing was measured, or without `lie=`.
    """

    aliasing_energy: float
    damage: float
    extra_milliseconds: float
    lie_share: float


# The measured fields: the head of the table's column, and a value's text.
_FIELDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "aliasing_energy": ("aliasing energy", lambda a: f"{100 * a:.2f} %"),
    "damage": ("damage", lambda d: f"{100 * d:.2f} %"),
    "lie_share": ("Lie derivative", lambda share: f"{100 * share:.1f} %"),
    "extra_milliseconds": ("extra ms", lambda ms: f"{ms:+.2f}"),
}


@dataclass(frozen=True)
class Profile(Sequence[ProfileRow]):
    """The aliasing at every site of a function, in the order they run; prints as a table."""

    rows: tuple[ProfileRow, ...]

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns an array of `layer` and of each measured field of the rows, for plots."""
        found = {name: np.array([getattr(row, name) for row in self.rows]) for name in _FIELDS}
        return {"layer": np.array([row.site.layer for row in self.rows], str), **found}

    def __getitem__(self, index):
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        columns = [("layer", "site", "shape", "stride", "antialias", "why", "extra MFLOP")]
        columns = [*zip(*columns, *map(cells, self.rows), strict=True)]
        measured = []
        for name, (head, text) in _FIELDS.items():
            values = [getattr(row, name) for row in self.rows]
            missing = "not measured" if name == "aliasing_energy" else ""
            if missing or name == "damage" or not np.isnan(values).all():
                measured.append((head, *(missing if np.isnan(v) else text(v) for v in values)))
        return table([*zip(*columns[:4], *measured, *columns[4:], strict=True)])


def added_milliseconds(
    plain: Callable[[Any], Any], filtered: Mapping[Any, Callable[[Any], Any]], arrays: Any
) -> dict[Any, float]:
    """Times functions against a plain one; returns the median of their differences.

    All run one after another in each of `ROUNDS` rounds, so that what slows the machine for a while
    slows all of them.
    """
    arrays = jax.device_put(arrays)
    compiled = [jax.jit(f).lower(arrays).compile() for f in (plain, *filtered.values())]
    rounds = [[_milliseconds(run, arrays) for run in compiled] for _ in range(1 + ROUNDS)]
    times = np.array(rounds[1:])  # the first one warms up
    return dict(zip(filtered, np.median(times[:, 1:] - times[:, :1], 0).tolist(), strict=True))


def _milliseconds(run: Callable[[Any], Any], arrays: Any) -> float:
    began = perf_counter()
    jax.block_until_ready(run(arrays))
    return 1000 * (perf_counter() - began)


@dataclass
class Contributions:
    """Adds to what each site keeps its contribution to the derivative, times a step of zero.

    The derivative of the outputs by that step is the contribution through all that follows.
    """

    steps: Mapping[Any, Array]  # by the site's key
    direction: Float[Array, "2"]  # (1, 0) is down, (0, 1) right
    sizes: tuple[int, int]  # of the images
    strides: tuple[set[float], set[float]] = field(default_factory=lambda: ({1.0}, {1.0}))
    seen: set[Any] = field(default_factory=set)

    def add(self, keys: Iterable[Any], dense: Array, strides: Mapping[int, int]) -> Array | None:
        """Returns what a site keeps of a dense map; None where it is not measured."""
        if len(strides) != 2 or not jnp.issubdtype(dense.dtype, jnp.floating):
            return None
        every = tuple(slice(None, None, strides.get(i)) for i in range(dense.ndim))
        kept = dense[every]
        found = jnp.zeros((), jnp.promote_types(dense.dtype, jnp.float32))
        for i, (axis, stride) in enumerate(strides.items()):
            # The total stride so far, a product of strides; without padding, sizes are inexact.
            ratio, known = self.sizes[i] / dense.shape[axis], self.strides[i]
            total = min(known, key=lambda s, ratio=ratio: abs(log(s / ratio)))
            known.add(total * stride)
            error = _slope(kept, axis) / stride - _slope(dense, axis)[every]
            found += self.direction[i] / total * error
        keys = list(keys)  # several, where maps were added before they are subsampled together
        self.seen.update(keys)
        step = sum(self.steps[key] for key in keys) / len(keys)
        return kept + (step * found).astype(dense.dtype)


def _slope(x: Array, axis: int) -> Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return along(x, axis, derivative_matrix(x.shape[axis]))


class Images(NamedTuple):
    """The images among a function's arrays."""

    number: int
    axes: tuple[int, int]  # down, right


def located(args: Sequence[Any], arrays: Sequence[Any], layout: Layout) -> Images:
    """Locates the images, which are the last positional argument, among the arrays.

    Raises:
        InputError: an unknown layout, or no images there.
    """
    axes, given = spatial_axes(layout), args[-1] if args else None
    is_array = isinstance(given, jax.Array | np.ndarray)
    if not is_array or given.ndim != 4 or not jnp.issubdtype(given.dtype, jnp.floating):
        what = f"{given.dtype} of shape {given.shape}" if is_array else type(given).__name__
        raise InputError(
            "a Lie derivative moves images, the last positional argument, which have to be "
            f"floating-point numbers of shape ({', '.join(layout)}); got {what}"
        )
    return Images(next(i for i, x in enumerate(arrays) if x is given), axes)


def check_vectors(outputs: Iterable[Any]) -> None:
    """Raises an InputError if an output is no vector, which would move with the image."""
    for output in outputs:
        if len(output.shape) > 2 or not jnp.issubdtype(output.dtype, jnp.floating):
            raise InputError(
                "the Lie derivative of a profile needs outputs that are vectors of numbers, got "
                f"{output.dtype} of shape {output.shape}; give a function to logits, or to the "
                "mean of the maps"
            )


def lie_shares(
    run: Callable[[Contributions, list[Array]], list[Array]],
    arrays: list[Array],
    images: Images,
    keys: Sequence[Any],
) -> dict[Any, float]:
    """Returns the share of each measured site; see the module.

    Args:
        run: the function, with sites that add their contributions.
        arrays: its arguments. images: those among them. keys: of all sites.
    """
    seen = set()

    @jax.jit
    @jax.jacfwd
    def derivatives(steps: Array, arrays: list[Array], direction: Array) -> list[Array]:
        x, of_sites = arrays[images.number], dict(zip(keys, steps, strict=False))
        down, right = images.axes
        added = Contributions(of_sites, direction, (x.shape[down], x.shape[right]))
        slope = direction[0] * _slope(x, down) + direction[1] * _slope(x, right)
        x = x - (steps[-1] * slope).astype(x.dtype)
        outputs = run(added, [*arrays[: images.number], x, *arrays[images.number + 1 :]])
        seen.update(added.seen)
        return outputs

    steps = jnp.zeros(len(keys) + 1, jnp.promote_types(arrays[images.number].dtype, jnp.float32))
    products = np.zeros(len(steps))
    for direction in jnp.eye(2, dtype=steps.dtype):
        for found in derivatives(steps, arrays, direction):
            by_step = np.asarray(found, np.float64).reshape(-1, len(steps))
            products += by_step[:, -1] @ by_step
    shares = products[:-1] / (products[-1] or 1)  # no derivative at all: no site has a share
    return {key: float(share) for key, share in zip(keys, shares, strict=True) if key in seen}
