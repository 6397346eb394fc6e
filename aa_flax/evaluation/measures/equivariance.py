"""Maps of internal shift-equivariance."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from aa_flax.data.sources import Source
from aa_flax.evaluation import plots
from aa_flax.evaluation.equivariance import EquivarianceMaps, check_crop, equivariance_maps
from aa_flax.evaluation.measure import Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.stored import StoredMeasure
from aa_flax.runtime import progress_bar

IMAGES = 8  # the maps are their mean


class Equivariance(StoredMeasure):
    """Each block's distance from equivariance at every shift of a period (Zhang 2019, fig. 5)."""

    options = (Option("equivariance", "maps of each block's equivariance: .npz and figure"),)
    needs_model = True

    def settings(self, subject: Subject) -> Result:
        return {"num_images": min(IMAGES, len(subject.source))}

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_crop(subject.model, subject.settings.crop_size)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        some, crop, mesh = Subset(subject.source, IMAGES), subject.settings.crop_size, subject.mesh
        settings = replace(subject.settings, batch_size=IMAGES * mesh.size)  # all in one batch
        batch = next(settings.batches(some, crop))
        with progress_bar(None, "equivariance", unit="shift") as bar:
            maps = equivariance_maps(subject.model, batch, crop_size=crop, mesh=mesh, progress=bar)
        percent = (100 * maps.relative.mean((1, 2))).tolist()
        found: Result = {"mean_distance": dict(zip(maps.blocks, percent, strict=True))}
        found["period"] = maps.maps.shape[-1]
        models = {subject.name: maps}
        return found | self.store(
            subject, vars(maps), lambda path: plots.plot_equivariance(path, models)
        )

    def draw(self, path: Path, rows: Sequence[Row]) -> None:
        maps = {row.title: EquivarianceMaps.load(row.file("equivariance")) for row in rows}
        plots.plot_equivariance(path, maps, plots.ALL_FORMATS)


class Subset:
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
