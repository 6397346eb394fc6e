"""Evaluates a net as a config says, and writes what was found."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from aa_flax.config import Config
from aa_flax.data.loader import evaluation_batches
from aa_flax.data.sources import Source, make_source
from aa_flax.errors import InputError
from aa_flax.evaluation import plots, views
from aa_flax.evaluation.accuracy import (
    Accuracy,
    accuracy,
    accuracy_per_class,
    save_predictions,
)
from aa_flax.evaluation.consistency import consistency, diagonal_arrays, worst_case
from aa_flax.evaluation.equivariance import equivariance_maps
from aa_flax.evaluation.files import (
    Results,
    beside,
    read_results,
    same_subject,
    save_arrays,
    write_results,
)
from aa_flax.evaluation.observe import Observations, observe, progress
from aa_flax.evaluation.robustness import measure_corruptions, measure_perturbations
from aa_flax.evaluation.summary import summary
from aa_flax.evaluation.timing import time_forward
from aa_flax.models.classifier import Classifier
from aa_flax.sharding import data_mesh, is_main_process

GRID_POINTS = 5  # on each axis, of the worst case
JITTER = 0.1  # of the crop size
MAP_IMAGES = 8  # that equivariance maps are the mean of


@dataclass(frozen=True)
class Measures:
    """What is measured beside accuracy; each is a flag of `eval.py`, explained there."""

    shift: bool = False
    per_batch: bool = False
    circular: bool = False
    worst_case: bool = False
    subpixel: bool = False
    jitter: bool = False
    diagonal: bool = False
    images: tuple[int, ...] = (0,)
    equivariance: bool = False
    corruptions: Path | None = None
    perturbations: Path | None = None
    flip_rates: Path | None = None
    per_class: bool = False
    predictions: Path | None = None
    time: bool = False


def accuracy_on(model: Classifier, source: Source, config: Config, mesh: Mesh) -> Accuracy:
    """Accuracy on the centre crops of a source's images."""
    return accuracy(_observe_center(model, source, config, mesh))


def evaluate(
    model: Classifier, config: Config, *, weights: str, output: Path, **measures: Any
) -> Results:
    """Measures accuracy and whatever else is asked for; prints it and writes it to `output`.

    What `output` already holds of the same net, weights and config stays in it. With several hosts,
    each calls this; the first prints and writes.

    Args:
        weights: where the weights come from, for the record.
        output: the `results.json` to write: every figure with its settings. Arrays and figures go
            to files beside it, whose names begin with its own.
        measures: fields of `Measures`, e.g. `shift=True`.

    Returns:
        The results of this call.

    Raises:
        InputError: a net that does not fit the data, or data that does not fit what is asked for.
    """
    wanted, mesh = Measures(**measures), data_mesh()
    source = make_source(config.data, "val")
    _check(model, source, config, wanted)
    results: Results = {"model": model.name, "weights": weights}
    results |= _measure_center(model, source, config, mesh, wanted)
    results |= _measure_views(model, source, config, mesh, wanted, output)
    if wanted.equivariance:
        results["equivariance"] = _measure_equivariance(model, source, config, mesh, output)
    if wanted.corruptions:
        results["corruptions"] = measure_corruptions(
            model, wanted.corruptions, source.num_classes, config, mesh
        )
    if wanted.perturbations:
        results["perturbations"] = measure_perturbations(
            model, wanted.perturbations, wanted.flip_rates, config, mesh
        )
    if wanted.time:
        results["time"] = time_forward(model, config.data.crop_size)
    results["config"] = json.loads(config.to_json())
    if is_main_process():
        write_results(output, results)
        print(summary(results))
        print(f"written to {output}")
    return results


def is_done(output: Path, model: str, weights: str, config: Config, measures: Measures) -> bool:
    """Whether a results file holds all that is asked for, of the same net, weights and config."""
    here = read_results(output)
    asked = {"model": model, "weights": weights, "config": json.loads(config.to_json())}
    return same_subject(here, asked) and _keys(measures) <= here.keys()


def _keys(measures: Measures) -> set[str]:
    """The keys of the results that the measures lead to."""
    named = {"shift": "consistency", "predictions": "top1"}
    measured = [f.name for f in fields(measures) if getattr(measures, f.name)]
    options = {"per_batch", "images", "flip_rates"}
    return {"top1", *(named.get(name, name) for name in measured if name not in options)}


def _check(model: Classifier, source: Source, config: Config, measures: Measures) -> None:
    classes = _num_classes(model, config.data.crop_size)
    if classes != source.num_classes:
        raise InputError(
            f"{model.name} has weights for {classes} classes, but the data has "
            f"{source.num_classes}; give the weights and the --config of one data set"
        )
    if measures.diagonal or measures.equivariance:
        plots.pyplot()
    if outside := [i for i in measures.images if i >= len(source)]:
        raise InputError(f"no image {outside[0]}: the data has images 0..{len(source) - 1}")


def _num_classes(model: Classifier, crop_size: int) -> int:
    graphdef, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, crop_size, crop_size, 3), jnp.float32)
    try:
        return jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, image).shape[-1]
    except ValueError as error:
        raise InputError(f"{model.name} cannot see crops of {crop_size} pixels: {error}") from error


def _observe_center(model, source: Source, config: Config, mesh: Mesh) -> Observations:
    size = config.data.crop_size
    batches = evaluation_batches(source, config.eval.batch_size, config.data, crop=size)
    center = {"accuracy": views.Center(size)}
    with progress(len(source), "accuracy") as bar:
        return observe(model, batches, center, mesh=mesh, progress=bar)["accuracy"]


def _measure_center(model, source, config, mesh, wanted: Measures) -> Results:
    seen = _observe_center(model, source, config, mesh)
    results: Results = {**accuracy(seen)}
    if wanted.per_class:
        results["per_class"] = accuracy_per_class(seen, source.class_names)
    if wanted.predictions and is_main_process():
        save_predictions(wanted.predictions, seen, source)
    return results


def _measure_views(
    model: Classifier,
    source: Source,
    config: Config,
    mesh: Mesh,
    wanted: Measures,
    output: Path,
) -> Results:
    """All that is measured by moving the image: each is read once, and cut on the device."""
    chosen = _views(config, wanted)
    if not chosen:
        return {}
    image_size = config.data.image_size
    batches = evaluation_batches(source, config.eval.batch_size, config.data, crop=image_size)
    with progress(len(source), ", ".join(chosen)) as bar:
        seen = observe(model, batches, chosen, mesh=mesh, progress=bar)
    results: Results = {}
    for name, found in seen.items():
        settings = _settings(chosen[name])
        if name == "diagonal":
            results[name] = _save_diagonal(model.name, found, wanted.images, output) | settings
        elif name == "worst_case":
            results[name] = {**worst_case(found), **settings}
        else:
            results[name] = {**consistency(found), **settings}
    return results | results.pop("shift", {})


def _views(config: Config, wanted: Measures) -> dict[str, views.Views]:
    size, reach = config.data.crop_size, config.eval.shift_range
    pairs = {"passes": config.eval.passes, "seed": config.eval.seed}
    shared = config.eval.batch_size if wanted.per_batch else 1
    known = {
        "shift": lambda: views.ShiftedPairs(size, reach, images_per_draw=shared, **pairs),
        "circular": lambda: views.RolledPairs(size, reach, **pairs),
        "worst_case": lambda: views.grid(size, reach, GRID_POINTS),
        "subpixel": lambda: views.SubpixelPairs(size, **pairs),
        "jitter": lambda: views.JitteredPairs(size, JITTER, **pairs),
        "diagonal": lambda: views.diagonal(size, config.data.image_size),
    }
    return {name: make() for name, make in known.items() if getattr(wanted, name)}


def _settings(chosen: views.Views) -> Results:
    """The fields of a set of views, for the record."""
    return {f.name: getattr(chosen, f.name) for f in fields(chosen)}  # type: ignore[arg-type]


def _save_diagonal(name: str, seen: Observations, images, output: Path) -> Results:
    arrays, figure = beside(output, "diagonal.npz"), beside(output, "diagonal.png")
    if is_main_process():
        save_arrays(arrays, diagonal_arrays(seen))
        plots.plot_diagonal(figure, {name: seen.probability}, images)
    return {"file": arrays.name, "figure": figure.name, "images": list(images)}


class _Some:
    """Some of a source's images, spread evenly over it."""

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


def _measure_equivariance(model, source, config, mesh: Mesh, output: Path) -> Results:
    some = _Some(source, MAP_IMAGES)
    count = -(-len(some) // mesh.size) * mesh.size
    size = config.data.crop_size
    batch = next(evaluation_batches(some, count, config.data, crop=size))
    with progress(None, "equivariance", unit="shift") as bar:
        maps = equivariance_maps(model, batch, crop_size=size, mesh=mesh, progress=bar)
    arrays, figure = beside(output, "equivariance.npz"), beside(output, "equivariance.png")
    if is_main_process():
        maps.save(arrays)
        plots.plot_equivariance(figure, {model.name: maps})
    relative = maps.maps.mean((1, 2)) / maps.scale
    return {
        "mean_distance": dict(zip(maps.blocks, (100 * relative).tolist(), strict=True)),
        "num_images": len(some),
        "period": maps.maps.shape[-1],
        "file": arrays.name,
        "figure": figure.name,
    }
