"""The epochs of a run: steps, evaluation, checkpoint, log."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import jax
from jax.sharding import Mesh

from aa_flax.config import Config, DataConfig
from aa_flax.data.batches import put_ahead, training_batches
from aa_flax.data.pixels import preprocess_batch
from aa_flax.data.sources import Source
from aa_flax.errors import InputError
from aa_flax.evaluation.engine import accuracy_on
from aa_flax.models.classifier import Classifier
from aa_flax.models.recalibrate import recalibrate_batch_norm
from aa_flax.runtime import data_mesh, log_line, put_batch, replicate
from aa_flax.training.distill import taught
from aa_flax.training.log import RunLog
from aa_flax.training.run_folder import RunFolder
from aa_flax.training.start import TorchRun
from aa_flax.training.step import (
    OnDevice,
    init_state,
    make_optimizer,
    make_schedule,
    make_train_step,
)
from aa_flax.training.stopping import Interrupted, Stopped, StopRequest
from aa_flax.weights.checkpoints import Checkpoints
from aa_flax.weights.train_state import TrainState, split_model, update_model


def train_epochs(
    config: Config,
    model: Classifier,
    sources: dict[str, Source],
    folder: RunFolder,
    checkpoints: Checkpoints,
    torch_run: TorchRun | None,
    teacher: Classifier | None,
    stop: StopRequest,
) -> None:
    """Trains to the last epoch, from the latest checkpoint, the run of the original, or the model.

    With a teacher, its answers replace the labels of training.

    Raises:
        InputError: a loss that is not finite, or a file that cannot be written.
        Stopped: on request; everything is saved.
    """
    mesh, data, options = data_mesh(), config.data, config.optimizer
    steps, num_epochs = folder.data["steps_per_epoch"], config.num_epochs
    sizes = {"batch_size": config.batch_size, "num_epochs": num_epochs, "steps_per_epoch": steps}
    schedule = make_schedule(options, **sizes)
    optimizer = make_optimizer(options, schedule)
    train_step = make_train_step(
        model,
        optimizer,
        partial(preprocess_batch, data=data),
        schedule=schedule,
        mesh=mesh,
        label_smoothing=options.label_smoothing,
        temperature=config.distill.temperature,
        accumulation_steps=options.accumulation_steps,
        accumulate=options.accumulate,
        batch_stat_groups=config.batch_stat_groups,
    )
    if teacher is not None:
        train_step = taught(train_step, teacher, config, mesh)
    batches_from = partial(_batches, sources["train"], config.batch_size, data, config.seed, mesh)
    train_steps = partial(_train_steps, train_step, checkpoints, stop)
    save = partial(checkpoints.save, num_classes=model.num_classes or 0, config=folder.config)
    state, first_epoch = _starting_state(  # which drops the initial state if it has a later one
        init_state(model, optimizer, mesh), checkpoints, torch_run, steps, save, mesh
    )
    if int(state.step):
        done, within = divmod(int(state.step), steps)
        where = f"step {within} after epoch {done}" if within else f"epoch {done}"
        log_line(f"continuing after {where} of {num_epochs}")
    folder.claim()  # not earlier: a run that cannot be restored must not change the folder
    batches = batches_from(int(state.step))
    log = RunLog(folder.path, folder.config, int(state.step))
    with stop.interruptible(False), log:
        for epoch in range(first_epoch, num_epochs + 1):
            began, first_step = time.perf_counter(), int(state.step)
            with log.epoch(epoch, steps, first_step - (epoch - 1) * steps):
                state = train_steps(state, batches, epoch * steps, log)
            numbers, step = log.epoch_means(), int(state.step)
            try:
                if step < epoch * steps:  # a request ended the steps: nothing to evaluate yet
                    raise Interrupted
                with stop.interruptible():
                    if config.recalibrate_batches:
                        first = islice(batches_from(0), config.recalibrate_batches)
                        state = _recalibrated(model, state, first, data, mesh)
                    accuracy = accuracy_on(update_model(model, state), sources["val"], config, mesh)
            except Interrupted:
                raise _stopped(epoch, state, steps, save, checkpoints) from None
            numbers |= {f"val_{name}": accuracy[name] for name in ("loss", "top1", "top5")}
            # Before saving: a checkpoint that is not finite would be resumed from.
            _check_finite(numbers["val_loss"], step, numbers.get("learning_rate"), checkpoints)
            save(state, epoch=epoch, top1=accuracy["top1"])
            seconds = time.perf_counter() - began
            full = step - first_step == steps
            log.end_epoch(epoch, step, numbers, (num_epochs - epoch) * seconds if full else 0)
            if stop.reached(step):
                raise _stopped(epoch, state, steps, save, checkpoints)
    checkpoints.wait()


def _starting_state(
    fresh: TrainState,
    checkpoints: Checkpoints,
    torch_run: TorchRun | None,
    steps: int,
    save: Callable[..., None],
    mesh: Mesh,
) -> tuple[TrainState, int]:
    """Returns the latest checkpoint, or the run of the original, or `fresh`; and the first epoch.

    An epoch that was trained and not evaluated is run again, without steps.
    """
    state, evaluated = fresh, False
    restored = checkpoints.restore_latest(like=fresh)
    if restored is not None:
        state, evaluated = restored[0], restored[1].top1 is not None
    elif torch_run is not None:
        state = replicate(torch_run.state(fresh, steps), mesh)
        save(state, epoch=torch_run.epoch, top1=None)
    done, within = divmod(int(state.step), steps)
    return state, done + 1 if evaluated or within or done == 0 else done


def _batches(
    source: Source, batch_size: int, data: DataConfig, seed: int, mesh: Mesh, start_step: int
) -> Iterator[OnDevice]:
    """Returns endless batches on the devices; the same ones for the same seed and step."""
    batches = training_batches(source, batch_size, data, seed=seed, start_step=start_step)
    return (batch for _, batch in put_ahead(batches, partial(put_batch, mesh=mesh)))


def _train_steps(
    train_step: Callable,
    checkpoints: Checkpoints,
    stop: StopRequest,
    state: TrainState,
    batches: Iterator[OnDevice],
    last_step: int,
    log: RunLog,
) -> TrainState:
    """Returns the state at the end of the epoch, or at the step after which to stop.

    Metrics are fetched one step late, so that the devices never wait for the host.
    """

    def add(step: int, metrics: dict[str, jax.Array], waited: float) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        rate = values["learning_rate"]
        _check_finite(values["loss"] + values["gradient_norm"], step, rate, checkpoints)
        log.add(step, values, waited)

    pending = None
    for step in range(int(state.step) + 1, last_step + 1):
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        log.profile.before_step(state)
        began = time.perf_counter()
        state, metrics = train_step(state, batch)
        log.called_step(time.perf_counter() - began)
        if pending is not None:
            add(*pending)
        pending = step, metrics, waited
        if stop.reached(step):
            break
    if pending is not None:
        add(*pending)
    return state


def _recalibrated(
    model: Classifier, state: TrainState, batches: Iterator[OnDevice], data: DataConfig, mesh: Mesh
) -> TrainState:
    """Returns the state with batch statistics re-estimated from batches of training images."""
    images = map(jax.jit(partial(preprocess_batch, data=data)), batches)
    recalibrate_batch_norm(update_model(model, state), images, mesh=mesh)
    _, _, batch_stats, _ = split_model(model)
    return state._replace(batch_stats=replicate(batch_stats, mesh))


def _check_finite(
    value: float, step: int, learning_rate: float | None, checkpoints: Checkpoints
) -> None:
    if math.isfinite(value):
        return
    checkpoints.wait()
    latest = checkpoints.latest
    last = "there is no checkpoint yet"
    if latest is not None:
        last = f"the last good checkpoint is of step {latest.step} (epoch {latest.epoch})"
    rate = "" if learning_rate is None else f" at learning rate {learning_rate:.4g}"
    raise InputError(
        f"the loss or its gradient is no longer finite after step {step}{rate}; {last}. Try a "
        "lower config.optimizer.learning_rate or some warmup_epochs, in another --workdir"
    )


def _stopped(
    epoch: int, state: TrainState, steps: int, save: Callable[..., None], checkpoints: Checkpoints
) -> Stopped:
    """Saves the state, unless it is saved, and returns the exception to raise."""
    step, latest = int(state.step), checkpoints.latest
    if latest is None or latest.step != step:
        save(state, epoch=step // steps, top1=None)
    checkpoints.wait()
    return Stopped(
        f"stopped after step {step} (in epoch {epoch}), all is saved; the same command continues"
    )
