"""A training run: everything that can be refused first, then epochs, then the results."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from aa_flax.config import Config, check_config
from aa_flax.data.batches import steps_per_epoch
from aa_flax.data.sources import Source, make_sources
from aa_flax.evaluation.by_config import evaluate_config
from aa_flax.models.classifier import Classifier
from aa_flax.models.recalibrate import check_batch_norms
from aa_flax.runtime import is_main_process, log_line
from aa_flax.training.distill import load_teacher
from aa_flax.training.log import check_writers
from aa_flax.training.loop import train_epochs
from aa_flax.training.run_folder import RunFolder, describe_data
from aa_flax.training.start import init_from, match_start, new_model, read_torch_run
from aa_flax.training.stopping import StopRequest
from aa_flax.weights.checkpoints import Checkpoints
from aa_flax.weights.locate import locate
from aa_flax.weights.save_load import save_weights


def train(
    config: Config,
    workdir: Path,
    resume: Path | None = None,
    *,
    accept_data_change: bool = False,
) -> dict[str, Any]:
    """Trains as the config says, resuming the run in `workdir` if there is one; evaluates the best.

    Args:
        workdir: folder of `config.json`, `data.json`, `versions.json`, `checkpoints/`,
            `metrics.jsonl`, and at the end `weights.safetensors` and `results.json`.
        resume: a training checkpoint of the PyTorch original to continue, unless `workdir` has a
            run to resume.
        accept_data_change: resume although the images are not those that the run was begun with.

    Returns:
        The final results, those of the checkpoint with the best top-1.

    Raises:
        InputError: a config that is wrong in itself, does not fit the data, or is not that of the
            run in the folder; other data; a file that cannot be written; a loss that is not finite.
        Stopped: the process got SIGTERM or SIGINT; everything is saved.
    """
    with StopRequest() as stop:
        config = check_config(config, training=True)
        check_writers(config.log)
        folder = RunFolder(workdir)
        sources = make_sources(config.data)
        steps = steps_per_epoch(sources["train"], config.batch_size)
        data = describe_data(sources, min(steps, config.max_steps_per_epoch or steps))
        of_teacher = None
        if config.distill.teacher:
            of_teacher = locate(config.distill.teacher, model=config.model)
            data["teacher"] = of_teacher.description()
        results = folder.check(config.to_dict(), data, accept=accept_data_change)
        if results is not None:
            return results
        num_classes = sources["train"].num_classes
        model, torch_run = new_model(config, num_classes), None
        teacher = load_teacher(of_teacher, config, num_classes) if of_teacher else None
        if resume is not None and not folder.continues:
            torch_run = read_torch_run(resume, model, config.optimizer, config.num_epochs)
        elif config.init_from and not folder.continues:
            weights = init_from(config.init_from, model)
            if config.match_images:
                match_start(weights, model, config, sources["train"])
            if config.recalibrate_batches:
                check_batch_norms(model)  # those of the weights may be folded
        with (
            folder.locked(),
            Checkpoints(
                folder.path / "checkpoints", keep_every=config.checkpoint.keep_every, of_run=True
            ) as checkpoints,
        ):
            log_line(_description(model, sources, config.dtype, folder.path))
            train_epochs(config, model, sources, folder, checkpoints, torch_run, teacher, stop)
            best = checkpoints.find(None)
            checkpoints.restore_model(best.step, model)
        if is_main_process():
            source = f"{folder.path} (epoch {best.epoch}, the best)"
            path = folder.path / "weights.safetensors"
            save_weights(model, path, source=source, top1=f"{best.top1}")
        return evaluate_config(
            model,
            config,
            weights=locate(folder.path, model=model.name).description(),
            output=folder.path / "results.json",
            measures=("shift",),
            replace=True,
            source=sources["val"],
        )


def _description(model: Classifier, sources: dict[str, Source], dtype: str, workdir: Path) -> str:
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    train, val = sources["train"], sources["val"]
    return (
        f"{model.name}: {parameters:,} parameters; {len(train):,} images to train on, {len(val):,} "
        f"to validate, {train.num_classes} classes; {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, {dtype}; in {workdir}"
    )
