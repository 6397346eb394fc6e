"""The time of a forward pass."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import jax

from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.row import Row, TimesByFilter, fastest, points, time_label
from aa_flax.evaluation.text import markdown, with_interval
from aa_flax.evaluation.timing import time_forward

BATCH_SIZE = 48  # as the original's run times


class Time(Measure):
    """Median of twenty compiled forward passes of 48 images on one device."""

    options = (Option("time", "the time of a forward pass of 48 images"),)
    columns = (
        Column(
            "ms",
            ("milliseconds",),
            unit="ms",
            note=f"milliseconds of a forward pass of {BATCH_SIZE} images: the median",
            interval="milliseconds_quartiles",
        ),
    )

    def settings(self, subject: Subject) -> Result:
        return {"batch_size": BATCH_SIZE, "device": jax.devices()[0].device_kind}

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        crop = subject.settings.crop_size
        return {**time_forward(subject.predictor, crop, batch_size=BATCH_SIZE)}

    def line(self, result: Result) -> str:
        time = with_interval(result["milliseconds"], result["milliseconds_quartiles"], unit="ms")
        return (
            f"{'forward':12} {time} for {result['batch_size']} images, median and quartiles "
            f"({result['device']})"
        )

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        nets = points(rows, ("time", "milliseconds"), ("top1",))
        if not nets:
            return []
        path, by_filter = folder / "time_accuracy.png", folder / "time_filter_size.png"
        plots.plot_models(path, nets, time_label(rows), "accuracy (%)")
        plots.plot_run_times(by_filter, _families(rows), time_label(rows))
        return [path, by_filter]

    def section(self, rows: Sequence[Row]) -> str:
        families = _families(rows)
        if not families:
            return ""
        sizes = sorted({k for family in families.values() for k in family}, key=lambda k: k or 0)
        heads = ["net", *("baseline" if k is None else f"lpf{k}" for k in sizes)]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [
            f"| {markdown(name)} | {' | '.join(_cell(family, k) for k in sizes)} |"
            for name, family in sorted(families.items(), key=lambda item: fastest(item[1]))
        ]
        return "\n\n".join(["## Run time", _EXPLAINED, "\n".join(lines)])


_EXPLAINED = (
    f"Milliseconds of a forward pass of {BATCH_SIZE} images, as many as the original's run times "
    "are of, and in brackets times the baseline's; the fastest net first. The package holds no "
    "published run times to put beside them."
)


def _families(rows: Sequence[Row]) -> dict[str, TimesByFilter]:
    """Milliseconds by filter size (None: the baseline), for each net that was timed."""
    families: dict[str, dict[int | None, list[float]]] = {}
    for row in rows:
        if times := row.values(("time", "milliseconds")):
            name = f"{row.base} ({row.label})" if row.label else row.base
            families.setdefault(name, {})[row.filter_size] = times
    return dict(families)


def _cell(family: TimesByFilter, filter_size: int | None) -> str:
    if filter_size not in family:
        return ""
    time = fmean(family[filter_size])
    over = f" ({time / fmean(family[None]):.2f})" if None in family and filter_size else ""
    return f"{time:.1f}{over}"
