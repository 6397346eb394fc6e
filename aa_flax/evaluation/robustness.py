"""A net's accuracy on corrupted images and its flips on perturbed clips, folder by folder."""

import copy
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from aa_flax.config import Config
from aa_flax.data.folder import ImageFolder
from aa_flax.data.loader import evaluation_batches
from aa_flax.errors import InputError
from aa_flax.evaluation.accuracy import accuracy
from aa_flax.evaluation.consistency import consistency
from aa_flax.evaluation.corruptions import (
    corruption_folders,
    corruption_summary,
    flip_rate,
    perturbation_folders,
    perturbation_summary,
    read_flip_rates,
)
from aa_flax.evaluation.observe import Observations, observe, progress
from aa_flax.evaluation.views import Center, ShiftedPairs, Views
from aa_flax.models.classifier import Classifier


def measure_corruptions(
    model: Classifier, root: Path, num_classes: int, config: Config, mesh: Mesh
) -> dict[str, Any]:
    """Accuracy for each corruption and severity, and consistency where images have room for it.

    Args:
        root: see `corruption_folders`.
        num_classes: of the net; the folders must have as many.

    Returns:
        See `corruption_summary`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, severities in corruption_folders(root).items():
        found[name] = {}
        for severity, folder in severities.items():
            source = ImageFolder(str(folder.parent), folder.name, config.data.class_order)
            _check_classes(source, folder, num_classes)
            seen = _observe(model, source, f"{name} {severity}", config, mesh)
            found[name][severity] = {**accuracy(seen["center"])}
            if "shift" in seen:
                pairs = consistency(seen["shift"])
                keys = ("consistency", "consistency_ci95")
                found[name][severity] |= {key: pairs[key] for key in keys}
    return corruption_summary(found)


def measure_perturbations(
    model: Classifier, root: Path, reference: Path | None, config: Config, mesh: Mesh
) -> dict[str, Any]:
    """Flip rates of the clips of each perturbation.

    Args:
        root: see `perturbation_folders`; a clip's frames are in the order of their file names.
        reference: a table of flip rates for the mFR, see `read_flip_rates`.

    Returns:
        See `perturbation_summary`.
    """
    table = read_flip_rates(reference) if reference else None
    rates = {}
    for folder in perturbation_folders(root):
        source = ImageFolder(str(root), folder.name, "sorted")  # labels do not matter here
        seen = _observe(model, source, folder.name, config, mesh, shifts=False)["center"]
        clips = [str(Path(source.name(i)).parent) for i in seen.index]
        noise = "noise" in folder.name
        rates[folder.name] = flip_rate(seen.predicted[:, 0], clips, noise=noise)
    return perturbation_summary(rates, table)


def _observe(
    model, source: ImageFolder, name: str, config: Config, mesh: Mesh, shifts: bool = True
) -> dict[str, Observations]:
    """Centre crops of images as they are, and shifted pairs where the first has room for them."""
    data = copy.deepcopy(config.data)
    data.resize_size = 0
    size, settings = config.data.crop_size, config.eval
    pairs = ShiftedPairs(size, settings.shift_range, settings.passes, settings.seed)
    chosen: dict[str, Views] = {"center": Center(size)}
    crop = size
    if shifts and min(source[0]["image"].size) >= pairs.needed_size:
        chosen["shift"], crop = pairs, pairs.needed_size
    batches = evaluation_batches(source, settings.batch_size, data, crop=crop)
    with progress(len(source), name) as bar:
        return observe(model, batches, chosen, mesh=mesh, progress=bar)


def _check_classes(source: ImageFolder, folder: Path, num_classes: int) -> None:
    if source.num_classes != num_classes:
        raise InputError(
            f"{folder} has {source.num_classes} classes, the net {num_classes}; give "
            "--config.data.class_order if some are left out"
        )
