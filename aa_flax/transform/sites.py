"""Detects sites, the operations of a program that subsample, and reports what is done at each.

`describe` recognises those of one equation, `pooled_by_reshape` those of two; `constants` has those
that show only in the values of constants.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Literal

from jax._src import source_info_util  # source lines of traced operations have no public API
from jax.extend.core import Literal as Constant

from aa_flax.ops.lowpass import BLUR_SCOPE
from aa_flax.transform.jaxpr import producers, sub_jaxprs
from aa_flax.transform.values import regrouped

_Sizes = tuple[int, ...]
Kind = Literal[
    "convolution",
    "max pool",
    "average pool",
    "slice",
    "resize",
    "space to depth",
    "other pool",
    "activation",
]

_KINDS: dict[str, Kind] = {
    "reduce_window_max": "max pool",
    "reduce_window_sum": "average pool",
    "reduce_window": "other pool",
    "reduce_window_min": "other pool",
    "select_and_gather_add": "other pool",
    "slice": "slice",
}

# Lines of these libraries say nothing about the user's model.
_LIBRARIES = ("/flax/", "/haiku/", "/equinox/", "/jax/", "/torch/", "/torchax/")
_LIBRARIES += ("/aa_flax/ops/", "/aa_flax/nn/", "/aa_flax/transform/")


@dataclass(frozen=True)
class Site:
    """One strided operation or activation of a function, as `where=` and a report see it.

    Args:
        layer: names of modules and scopes (Linen, Haiku, `jax.named_scope`), the parameter that it
            reads (`params.conv1.kernel`), or its line of code.
        primitive: JAX's name of the operation; of an activation, the one with which it begins.
        shape, output_shape: of its input and its output, in the function's own layout.
        strides, window: for each spatial axis; the window is the kernel's or the pool's extent.
        channels: of its input, or None where the operation does not say which axis they are.
    """

    layer: str
    kind: Kind
    primitive: str
    shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    strides: tuple[int, ...]
    window: tuple[int, ...]
    channels: int | None


@dataclass(frozen=True)
class Row:
    """The outcome at one site.

    Args:
        done: its replacement; empty if it was left alone.
        reason: why it was left alone, or what to know about its replacement.
        extra_flops: additional floating-point operations in one call of the function.
    """

    site: Site
    done: str
    reason: str
    extra_flops: int


@dataclass(frozen=True)
class Report(Sequence[Row]):
    """Every site of a function, in the order they run; prints as a table."""

    rows: tuple[Row, ...]

    @property
    def antialiased(self) -> tuple[Row, ...]:
        """The sites that were antialiased."""
        return tuple(row for row in self.rows if row.done)

    @property
    def left_alone(self) -> tuple[Row, ...]:
        """The sites that were not."""
        return tuple(row for row in self.rows if not row.done)

    @property
    def extra_flops(self) -> int:
        """Additional floating-point operations in one call of the function."""
        return sum(row.extra_flops for row in self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        head = ("layer", "site", "shape", "stride", "done", "why", "extra MFLOP")
        counts = f"{len(self.antialiased)} antialiased, {len(self.left_alone)} left alone"
        lines = table([head, *map(cells, self.rows)])
        return f"{lines}\n{counts}, {self.extra_flops / 1e6:+.1f} MFLOP"


def table(lines: list[tuple[str, ...]]) -> str:
    """Returns lines of cells, of which the first is the head, as text in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def cells(row: Row) -> tuple[str, ...]:
    """Returns a row of the report's table."""
    site = row.site
    sizes = (site.shape, site.output_shape, site.strides, site.window)
    shape, output_shape, strides, window = ("x".join(map(str, each)) for each in sizes)
    detail = {"slice": "", "activation": site.primitive}.get(site.kind, window)
    kind = f"{site.kind} {detail}".strip()
    first = (site.layer, kind, f"{shape} -> {output_shape}", strides, row.done or "left alone")
    return (*first, row.reason, f"{row.extra_flops / 1e6:+.2f}")


def describe(eqn: Any, layer: str) -> Site | None:
    """Returns the site of an equation that subsamples, and None for any other."""
    name, params = eqn.primitive.name, eqn.params
    if name == "conv_general_dilated":
        strided = max(params["window_strides"], default=1) > 1
        return convolution_site(eqn, layer) if strided and not is_blur(eqn) else None
    if name not in _KINDS:
        return None
    strides = params["strides" if name == "slice" else "window_strides"] or ()
    if max(strides, default=1) == 1:
        return None
    windows = params.get("window_dimensions", (1,) * len(strides))
    spatial = [pair for pair in zip(strides, windows, strict=True) if max(pair) > 1]
    strides, window = zip(*spatial, strict=True)
    return site_of(eqn, layer, _KINDS[name], strides, window)


def convolution_site(eqn: Any, layer: str) -> Site:
    """Returns the site of a convolution."""
    numbers = eqn.params["dimension_numbers"]
    x, kernel = (v.aval.shape for v in eqn.invars)
    window = tuple(kernel[i] for i in numbers.rhs_spec[2:])
    site = site_of(eqn, layer, "convolution", eqn.params["window_strides"], window)
    return replace(site, channels=x[numbers.lhs_spec[1]])


def site_of(
    eqn: Any, layer: str, kind: Kind, strides: _Sizes, window: _Sizes, source: Any = None
) -> Site:
    """Returns the site of an equation, which reads `source` (default: its first operand)."""
    shape = (eqn.invars[0].aval if source is None else source.aval).shape
    output = eqn.outvars[0].aval.shape
    return Site(layer, kind, eqn.primitive.name, shape, output, strides, window, None)


def is_blur(eqn: Any) -> bool:
    """Checks whether an equation belongs to BlurPool, and so is antialiased already."""
    return BLUR_SCOPE in str(eqn.source_info.name_stack)


def sites_in(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations that may subsample, in a program and in all that it calls."""
    for eqn in jaxpr.eqns:
        is_kernel = eqn.primitive.name == "aa_flax_kernel"  # whose definition may have a stride
        if describe(eqn, "") is not None or is_reshape_pool(eqn) or is_kernel:
            yield eqn
        for inner, _ in sub_jaxprs(eqn):
            yield from sites_in(inner)


def has_sites(*programs: Any) -> bool:
    """Checks whether one of the programs, or one that they call, may subsample."""
    return any(True for jaxpr in programs for _ in sites_in(jaxpr))


def layer_name(eqn: Any, parameters: Sequence[str] = ()) -> str:
    """Returns the best known name of an equation's layer: its scope, parameter or line of code."""
    scope = str(eqn.source_info.name_stack)
    if parameters and (not scope or "eqx.nn." in scope):  # Equinox's scopes are names of classes
        return parameters[0]
    return scope or line_of(eqn)


def line_of(eqn: Any) -> str:
    """Returns an equation's line of code: the user's, if known, else that of a library."""
    frames = list(source_info_util.user_frames(eqn.source_info.traceback))
    own = [f for f in frames if not any(part in f.file_name for part in _LIBRARIES)]
    for frame in own or frames:
        return f"{Path(frame.file_name).name}:{frame.start_line} ({frame.function_name})"
    return "unknown"


def is_reshape_pool(eqn: Any) -> bool:
    """Checks whether an equation may begin a pool by reshape, which splits axes of a map."""
    if eqn.primitive.name != "reshape" or eqn.params["dimensions"] is not None:
        return False
    return 2 <= len(eqn.params["new_sizes"]) - len(eqn.invars[0].aval.shape) <= 3


def pooled_by_reshape(
    shape: tuple[int, ...], split: tuple[int, ...], axes: tuple[int, ...]
) -> dict[int, int] | None:
    """Returns the windows, by axis, of a pool written as a reshape and a reduction, or None.

    An axis of `shape` that `split` has as two, of which the reduction takes the inner one, is
    pooled; there must be one to three adjoining ones.
    """
    windows, i = {}, 0
    for axis, size in enumerate(shape):
        pair = split[i : i + 2]
        is_split = len(pair) == 2 and prod(pair) == size and pair[1] > 1
        if pair[:1] == (size,) and not (size == 1 and is_split):
            i += 1
        elif is_split and i + 1 in axes and i not in axes:
            windows[axis] = pair[1]
            i += 2
        else:
            return None
    adjoining = all(b - a == 1 for a, b in pairwise(windows))
    complete = i == len(split) and len(axes) == len(windows)
    return windows if complete and adjoining and len(windows) in (1, 2, 3) else None


def ensemble_size(jaxpr: Any, eqn: Any) -> int:
    """Returns how many members of an ensemble `jax.vmap` has made the groups of a convolution.

    It merges the members into the channels of both operands by a reshape just before the
    convolution. A convolution that was grouped from the start has no such reshape, and counts one.
    """
    numbers, producer = eqn.params["dimension_numbers"], producers(jaxpr)
    pairs = zip(eqn.invars, (numbers.lhs_spec[1], numbers.rhs_spec[0]), strict=True)
    merged = {_merged(producer, variable, axis) for variable, axis in pairs}
    return merged.pop() if len(merged) == 1 else 1


def _merged(producer: dict[Any, Any], variable: Any, axis: int) -> int:
    """Returns the size of the axes that reshapes have merged into an axis, in front of it."""
    eqn = None if isinstance(variable, Constant) else producer.get(variable)
    if eqn is None or eqn.primitive.name not in ("reshape", "transpose"):
        return 1
    (source,) = eqn.invars
    order = eqn.params.get("permutation", eqn.params.get("dimensions"))
    order = range(source.aval.ndim) if order is None else order
    sizes = [source.aval.shape[i] for i in order]
    groups = regrouped(sizes, eqn.outvars[0].aval.shape) or []
    left, right = next((g for g in groups if axis in g[1]), ([], []))
    if right != [axis] or len(left) not in (1, 2):
        return 1
    # Nested vmaps merge one axis each, so the rest of the axis may come from a reshape before.
    return prod(sizes[i] for i in left[:-1]) * _merged(producer, source, order[left[-1]])
