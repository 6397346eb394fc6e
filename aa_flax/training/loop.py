"""A training run: epochs, evaluation, checkpoints, and what the user sees of them."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from tqdm import tqdm

from aa_flax.config import Config
from aa_flax.create import create_model
from aa_flax.data.loader import put_ahead, steps_per_epoch, training_batches
from aa_flax.data.sources import Source, make_source
from aa_flax.data.transforms import preprocess
from aa_flax.errors import InputError
from aa_flax.evaluation.evaluate import accuracy_on, evaluate
from aa_flax.models.classifier import Classifier
from aa_flax.sharding import data_mesh, put_batch
from aa_flax.training.checkpoints import Checkpoints
from aa_flax.training.optimizer import make_optimizer, make_schedule
from aa_flax.training.state import TrainState, init_state, make_train_step, update_model
from aa_flax.weights.torch_format import load_torch_state_dict


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Trains as the config says, continuing what `workdir` already holds, and evaluates the best.

    Args:
        config: see `configs/`.
        workdir: folder of the run: `config.json`, `checkpoints/`, and at the end `results.json`.

    Returns:
        The final results, those of the checkpoint with the best top-1.

    Raises:
        InputError: a config that does not fit the data, or another than the run began with.
    """
    sources = {split: make_source(config.data, split) for split in ("train", "val")}
    steps = steps_per_epoch(sources["train"], config.batch_size)
    model = model_of(config)
    schedule = make_schedule(config, steps)
    _claim_workdir(config, workdir)  # what can be wrong with a config has shown by now
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        _run_epochs(config, model, sources, steps, schedule, checkpoints)
        best = checkpoints.best_epoch
        assert best is not None
        checkpoints.restore_model(best, model)
    weights = f"{workdir} (epoch {best}, the best)"
    return evaluate(model, config, weights=weights, shift=True, output=workdir / "results.json")


def model_of(config: Config) -> Classifier:
    """The net of a config, with fresh weights."""
    source = make_source(config.data, "val")
    return create_model(
        config.model,
        num_classes=source.num_classes,
        rngs=nnx.Rngs(config.seed),
        dtype=config.dtype,
    )


def load_weights_of(source: Path, model: Classifier) -> str:
    """Fills the model from a run's best checkpoint or a torch file.

    Returns:
        What was taken, for the record.

    Raises:
        InputError: no such weights, weights of another model, or a run without a checkpoint yet.
    """
    if source.suffix in (".pth", ".pt", ".tar"):
        load_torch_state_dict(model, source)
        return str(source)
    saved = source / "config.json"
    if not saved.is_file():
        raise InputError(
            f"no run in {source} (no config.json there); train first, or give --weights"
        )
    name = json.loads(saved.read_text())["model"]
    if name != model.name:
        raise InputError(f"the run in {source} trained {name}, not {model.name}; give its --config")
    with Checkpoints(source / "checkpoints") as checkpoints:
        best = checkpoints.best_epoch
        if best is None:
            raise InputError(f"the run in {source} has no checkpoint yet; one follows each epoch")
        checkpoints.restore_model(best, model)
    return f"{source} (epoch {best}, the best)"


def _claim_workdir(config: Config, workdir: Path) -> None:
    """A folder holds one run: records its config, or checks that it is this one."""
    path = workdir / "config.json"
    given = json.loads(config.to_json())
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(given, indent=2) + "\n")
        return
    saved = json.loads(path.read_text())
    if saved != given:
        old, new = _flat(saved), _flat(given)
        changed = [
            f"{key}: {old.get(key)} there, {new.get(key)} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        raise InputError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}); give another "
            "--workdir, or the same config to continue"
        )


def _flat(tree: dict, prefix: str = "config") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}"
        flat |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return flat


def _run_epochs(
    config: Config,
    model: Classifier,
    sources: dict[str, Source],
    steps: int,
    schedule: optax.Schedule,
    checkpoints: Checkpoints,
) -> None:
    mesh = data_mesh()
    optimizer = make_optimizer(config, schedule)
    state = init_state(model, optimizer, mesh)
    start = checkpoints.latest_epoch or 0
    if start:
        state = checkpoints.restore(start, like=state)
        print(f"continuing after epoch {start} of {config.num_epochs}")
    train_step = make_train_step(model, optimizer, partial(preprocess, data=config.data))
    batches = training_batches(
        sources["train"],
        config.batch_size,
        config.data,
        seed=config.seed,
        start_step=start * steps,
    )
    put = (batch for _, batch in put_ahead(batches, partial(put_batch, mesh=mesh)))
    for epoch in range(start + 1, config.num_epochs + 1):
        began = time.perf_counter()
        state, trained = _run_epoch(train_step, state, put, steps, epoch, config)
        seconds = time.perf_counter() - began
        accuracy = accuracy_on(update_model(model, state), sources["val"], config, mesh)
        checkpoints.save(epoch, state, accuracy["top1"])
        print(
            f"epoch {epoch:3d}/{config.num_epochs}  train loss {trained['loss']:.4f} "
            f"top-1 {trained['top1']:6.2f} %  val loss {accuracy['loss']:.4f} "
            f"top-1 {accuracy['top1']:6.2f} %  lr {schedule(int(state.step)):.2g}  "
            f"{steps * config.batch_size / seconds:.0f} img/s",
            flush=True,
        )


def _run_epoch(
    train_step,
    state: TrainState,
    batches: Iterator[Any],
    steps: int,
    epoch: int,
    config: Config,
) -> tuple[TrainState, dict[str, float]]:
    """Trains for `steps` steps; the metrics stay on the device until the end."""
    size = config.batch_size
    history = []
    title = f"epoch {epoch}/{config.num_epochs}"
    with tqdm(total=steps * size, desc=title, unit="img", leave=False) as bar:
        for _ in range(steps):
            batch = next(batches)
            state, metrics = train_step(state, batch)
            history.append(metrics)
            if len(history) > 1:  # wait for the step before: the bar shows work that is done
                bar.set_postfix(loss=f"{float(history[-2]['loss']) / size:.3f}", refresh=False)
                bar.update(size)
        jax.block_until_ready(state)
        bar.update(size)
    total = {name: sum(float(m[name]) for m in history) for name in history[0]}
    images = steps * size
    return state, {"loss": total["loss"] / images, "top1": 100 * total["correct"] / images}
