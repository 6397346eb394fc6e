"""What `antialias` does to a function, place by place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aa_flax.transform.places import Place


@dataclass(frozen=True)
class Row:
    """What was done at a place.

    Args:
        place: the place itself.
        done: what takes its place; empty: it was left alone.
        reason: why it was left alone, or what to know about what was done.
        extra_flops: floating-point operations more than before, in one call of the function.
    """

    place: Place
    done: str
    reason: str
    extra_flops: int


@dataclass(frozen=True)
class Report(Sequence[Row]):
    """Every place of a function that subsamples, in the order it runs; prints as a table."""

    rows: tuple[Row, ...]

    @property
    def antialiased(self) -> tuple[Row, ...]:
        """The places that were antialiased."""
        return tuple(row for row in self.rows if row.done)

    @property
    def left_alone(self) -> tuple[Row, ...]:
        """The places that were not."""
        return tuple(row for row in self.rows if not row.done)

    @property
    def extra_flops(self) -> int:
        """Floating-point operations more than before, in one call of the function."""
        return sum(row.extra_flops for row in self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        head = ("layer", "place", "shape", "stride", "done", "why", "extra MFLOP")
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        lines.insert(1, tuple("-" * width for width in widths))
        table = "\n".join(_line(line, widths) for line in lines)
        return (
            f"{table}\n{len(self.antialiased)} antialiased, {len(self.left_alone)} left alone, "
            f"{self.extra_flops / 1e6:+.1f} MFLOP"
        )


def _cells(row: Row) -> tuple[str, ...]:
    place = row.place
    window = "x".join(map(str, place.window))
    return (
        place.layer,
        place.kind if place.kind == "slice" else f"{place.kind} {window}",
        f"{_sizes(place.shape)} -> {_sizes(place.output_shape)}",
        "x".join(map(str, place.strides)),
        row.done or "left alone",
        row.reason,
        f"{row.extra_flops / 1e6:+.2f}",
    )


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
