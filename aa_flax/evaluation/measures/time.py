"""Time of a forward pass."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Column, Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.predict import predictor_of
from aa_flax.evaluation.row import Row, TimesByFilter, fastest, points, time_label
from aa_flax.evaluation.text import markdown, markdown_table, with_interval

BATCH_SIZE = 48  # as in the run times of the PyTorch original
_EXPLAINED = (
    f"Milliseconds of a forward pass of {BATCH_SIZE} images, the batch of the PyTorch original's "
    "run times; in brackets the ratio to the baseline; fastest model first. The package contains "
    "no published run times to compare with."
)


def time_forward(
    predict: Any, crop_size: int, *, batch_size: int = BATCH_SIZE, repeats: int = 20
) -> Result:
    """Times a model on uint8 images that are already on the device, after two warm-up passes.

    The run times of the PyTorch original are of 48 images of 224x224.
    """
    predictor = predictor_of(predict, crop_size=crop_size)
    images = jnp.zeros((batch_size, crop_size, crop_size, 3), jnp.uint8)
    seconds = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(predictor.logits(images))
        seconds.append(time.perf_counter() - began)
    low, median, high = (1000 * float(q) for q in np.quantile(seconds[2:], (0.25, 0.5, 0.75)))
    return {
        "milliseconds": median,  # of a forward pass on one device
        "milliseconds_quartiles": [low, high],
        "batch_size": batch_size,
        "crop_size": crop_size,
        "repeats": repeats,
        "device": jax.devices()[0].device_kind,
    }


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
        return time_forward(subject.predictor, subject.settings.crop_size)

    def line(self, result: Result) -> str:
        time = with_interval(result["milliseconds"], result["milliseconds_quartiles"], unit="ms")
        return (
            f"{'forward':12} {time} for {result['batch_size']} images, median and quartiles "
            f"({result['device']})"
        )

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        models = points(rows, ("time", "milliseconds"), ("top1",))
        if not models:
            return []
        path, by_filter = folder / "time_accuracy.png", folder / "time_filter_size.png"
        plots.plot_models(path, models, time_label(rows), "accuracy (%)")
        plots.plot_run_times(by_filter, _families(rows), time_label(rows))
        return [path, by_filter]

    def section(self, rows: Sequence[Row]) -> str:
        families = _families(rows)
        if not families:
            return ""
        sizes = sorted({k for family in families.values() for k in family}, key=lambda k: k or 0)
        heads = ["model", *("baseline" if k is None else f"lpf{k}" for k in sizes)]
        cells = [
            [markdown(name), *(_cell(family, k) for k in sizes)]
            for name, family in sorted(families.items(), key=lambda item: fastest(item[1]))
        ]
        return "\n\n".join(["## Run time", _EXPLAINED, markdown_table(heads, cells)])


def _families(rows: Sequence[Row]) -> dict[str, TimesByFilter]:
    """Returns milliseconds by filter size (None: the baseline) of each model that was timed."""
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
    ratio = f" ({time / fmean(family[None]):.2f})" if None in family and filter_size else ""
    return f"{time:.1f}{ratio}"
