"""Evaluates a net as a config says, and writes what was found."""

import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from tqdm import tqdm

from aa_flax.config import Config
from aa_flax.data.loader import evaluation_batches
from aa_flax.data.sources import Source, make_source
from aa_flax.evaluation.accuracy import Accuracy, evaluate_accuracy
from aa_flax.evaluation.consistency import Consistency, evaluate_consistency
from aa_flax.models.classifier import Classifier
from aa_flax.sharding import data_mesh


def accuracy_on(model: Classifier, source: Source, config: Config, mesh: Mesh) -> Accuracy:
    """Accuracy on the centre crops of a source's images."""
    batches = evaluation_batches(
        source, config.eval.batch_size, config.data, crop=config.data.crop_size
    )
    with _progress(source, "accuracy") as bar:
        return evaluate_accuracy(
            model, batches, crop_size=config.data.crop_size, mesh=mesh, progress=bar
        )


def consistency_on(model: Classifier, source: Source, config: Config, mesh: Mesh) -> Consistency:
    """Shift consistency on a source's images."""
    batches = evaluation_batches(
        source, config.eval.batch_size, config.data, crop=config.data.image_size
    )
    with _progress(source, "consistency") as bar:
        return evaluate_consistency(
            model,
            batches,
            crop_size=config.data.crop_size,
            shift_range=config.eval.shift_range,
            passes=config.eval.passes,
            seed=config.eval.seed,
            mesh=mesh,
            progress=bar,
        )


def evaluate(
    model: Classifier, config: Config, *, weights: str, shift: bool, output: Path
) -> dict[str, Any]:
    """Measures accuracy, and with `shift` consistency; prints them and writes them to `output`.

    Args:
        weights: where the weights come from, for the record.
        output: the `results.json` to write: every figure with its settings.
    """
    mesh = data_mesh()
    source = make_source(config.data, "val")
    results: dict[str, Any] = {"model": model.name, "weights": weights}
    results |= accuracy_on(model, source, config, mesh)
    if shift:
        results |= consistency_on(model, source, config, mesh)
    results["config"] = config.to_dict()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n")
    print(_summary(results))
    print(f"written to {output}")
    return results


def _summary(results: dict[str, Any]) -> str:
    lines = [
        f"{results['model']}, {results['num_images']} images, weights: {results['weights']}",
        f"  accuracy     top-1 {results['top1']:6.2f} %   top-5 {results['top5']:6.2f} %   "
        f"loss {results['loss']:.4f}",
    ]
    if "consistency" in results:
        lines.append(
            f"  shifted      top-1 {results['top1_shifted']:6.2f} %   consistency "
            f"{results['consistency']:6.2f} ± {results['consistency_ci95']:.2f} %   "
            f"({results['passes']} passes, seed {results['seed']})"
        )
    return "\n".join(lines)


def _progress(source: Source, name: str) -> tqdm:
    return tqdm(total=len(source), desc=name, unit="img", leave=False)
