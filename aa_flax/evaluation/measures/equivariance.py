"""Maps of internal shift-equivariance."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from aa_flax.data.sources import Source
from aa_flax.errors import InputError
from aa_flax.evaluation import plots
from aa_flax.evaluation.equivariance import EquivarianceMaps, check_crop, equivariance_maps
from aa_flax.evaluation.measure import Measure, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.results import next_to
from aa_flax.evaluation.row import Row, by_base
from aa_flax.evaluation.text import file_name
from aa_flax.runtime import is_main_process, progress_bar

IMAGES = 8  # the maps are their mean


class Equivariance(Measure):
    """Each block's distance from equivariance at every shift of a period (Zhang 2019, fig. 5)."""

    options = (Option("equivariance", "maps of each block's equivariance: .npz and figure"),)
    needs_model = True

    def settings(self, subject: Subject) -> Result:
        return {"num_images": min(IMAGES, len(subject.source))}

    def check(self, subject: Subject) -> None:
        if subject.output is None:
            raise InputError("the measure equivariance writes files: give output, a results file")
        plots.pyplot()
        check_crop(subject.model, subject.settings.crop_size)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        assert subject.output is not None
        maps = _maps(subject)
        arrays, figure = (next_to(subject.output, f"equivariance.{end}") for end in ("npz", "png"))
        if is_main_process():
            maps.save(arrays)
            plots.plot_equivariance(figure, {subject.name: maps})
        relative = maps.relative.mean((1, 2)).tolist()
        return {
            "mean_distance": {
                block: 100 * mean for block, mean in zip(maps.blocks, relative, strict=True)
            },
            "period": maps.maps.shape[-1],
            "file": arrays.name,
            "figure": figure.name,
        }

    def line(self, result: Result) -> str:
        return f"{'equivariance':12} {result['file']}, {result['figure']}"

    def figures(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        drawn = []
        for base, models in by_base([row for row in rows if row.first("equivariance")]).items():
            maps = {row.title: EquivarianceMaps.load(row.file("equivariance")) for row in models}
            drawn.append(folder / f"equivariance_{file_name(base)}.png")
            plots.plot_equivariance(drawn[-1], maps, plots.ALL_FORMATS)
        return drawn


def _maps(subject: Subject) -> EquivarianceMaps:
    some, crop, mesh = _Subset(subject.source, IMAGES), subject.settings.crop_size, subject.mesh
    settings = replace(subject.settings, batch_size=IMAGES * mesh.size)  # all in one batch
    batch = next(settings.batches(some, crop))
    with progress_bar(None, "equivariance", unit="shift") as bar:
        return equivariance_maps(subject.model, batch, crop_size=crop, mesh=mesh, progress=bar)


class _Subset:
    """Some images of a source, spread evenly over it."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._indices = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int):
        return self._source[int(self._indices[index])]
