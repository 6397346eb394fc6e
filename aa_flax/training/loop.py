"""A training run: epochs, evaluation, checkpoints, and what the user sees of them."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from aa_flax.config import Config, check_config, check_training, images_of_config
from aa_flax.data.loader import put_ahead, steps_per_epoch, training_batches
from aa_flax.data.sources import Source, make_sources
from aa_flax.data.transforms import preprocess
from aa_flax.errors import InputError
from aa_flax.evaluation.by_config import evaluate_config
from aa_flax.evaluation.engine import accuracy_on, summary
from aa_flax.models.classifier import Classifier
from aa_flax.runtime import data_mesh, is_main_process, log_line, put_batch, replicate
from aa_flax.training.checkpoints import Checkpoints
from aa_flax.training.initialise import init_from, model_of
from aa_flax.training.optimizer import make_optimizer, make_schedule
from aa_flax.training.profiling import Profile
from aa_flax.training.recalibration import check_recalibration, recalibrated
from aa_flax.training.reporting import (
    Meter,
    Numbers,
    ProgressBar,
    check_writers,
    epoch_line,
    make_writers,
)
from aa_flax.training.same_run import (
    check_same_config,
    check_same_data,
    describe_data,
    finished_results,
)
from aa_flax.training.state import TrainState, init_state, make_train_step, update_model
from aa_flax.training.stopping import Interrupted, Stopped, StopRequest
from aa_flax.training.torch_resume import TorchRun, read_torch_run
from aa_flax.training.workdir import (
    check_nothing_lost,
    check_writable,
    claim_workdir,
    has_checkpoint,
    locked,
    writing,
)
from aa_flax.weights.files import save_weights
from aa_flax.weights.fit import num_classes_of
from aa_flax.weights.locate import locate

_REPORT_EVERY = 50  # steps between two rows of metrics.jsonl


def train(
    config: Config,
    workdir: Path,
    resume: Path | None = None,
    *,
    accept_data_change: bool = False,
) -> dict[str, Any]:
    """Trains as the config says, continuing what `workdir` already holds, and evaluates the best.

    Args:
        config: see `configs/`.
        workdir: folder of the run: `config.json`, `data.json`, `versions.json`, `checkpoints/`,
            `metrics.jsonl`, and at the end `weights.safetensors` and `results.json`.
        resume: a training checkpoint of the PyTorch original to continue, where `workdir` holds
            nothing to continue yet.
        accept_data_change: continue although the images are not those the run was begun with.

    Returns:
        The final results, those of the checkpoint with the best top-1.

    Raises:
        InputError: a config that is wrong in itself or does not fit the data, or another than the
            run began with, or other data; a file that cannot be written; a loss that is not finite.
        Stopped: the process was sent SIGTERM or SIGINT; everything is saved.
    """
    with StopRequest() as stop:
        return _train(config, workdir, resume, stop, accept_data_change=accept_data_change)


def _train(
    config: Config,
    workdir: Path,
    resume: Path | None,
    stop: StopRequest,
    *,
    accept_data_change: bool,
) -> dict[str, Any]:
    config = check_config(config)
    check_training(config)
    check_writers(config)
    check_writable(workdir)
    sources = make_sources(config.data)
    data = describe_data(sources, _steps_per_epoch(config, sources["train"]))
    continues, torch_run = has_checkpoint(workdir), None
    if continues:
        results = _check_same_run(config, data, workdir, accept=accept_data_change)
        if results is not None:
            return results
    else:
        check_nothing_lost(workdir)
    model = model_of(config, sources["train"].num_classes)
    model.config = replace(model.config, **images_of_config(config.to_dict()))
    _check_sizes(config, model)
    check_recalibration(config, model)
    if not continues and resume is not None:
        torch_run = read_torch_run(resume, model, config)
    elif not continues:
        init_from(config.init_from, model)
    keep_every = config.checkpoint.keep_every
    with (
        locked(workdir),
        Checkpoints(workdir / "checkpoints", keep_every=keep_every, of_run=True) as checkpoints,
    ):
        log_line(_start_line(config, model, sources, workdir))
        run = _Run(config, workdir, model, sources, checkpoints, torch_run)
        claim_workdir(workdir, config=config.to_dict(), data=data)
        run.train(stop)
        checkpoints.wait()
        best = checkpoints.find(None)
        checkpoints.restore_model(best.step, model)
    if is_main_process():
        facts = {"source": f"{workdir} (epoch {best.epoch}, the best)", "top1": f"{best.top1}"}
        with writing(path := workdir / "weights.safetensors"):
            save_weights(model, path, **facts)
    return evaluate_config(
        model,
        config,
        weights=locate(workdir, model=model.name).description(),
        output=workdir / "results.json",
        measures=("shift",),
        replace=True,
    )


def _check_same_run(
    config: Config, data: dict[str, Any], workdir: Path, *, accept: bool
) -> dict[str, Any] | None:
    """That the folder's run is this one; its results if it is finished. Nothing is changed."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        latest, best = checkpoints.latest, checkpoints.best
    check_same_config(config, workdir, latest)
    check_same_data(data, config, workdir, latest, accept=accept)
    results = finished_results(config, workdir, data, latest, best)
    if results is not None:
        log_line(summary(results))
        log_line(f"the run in {workdir} is finished; these are the results it has written")
    return results


def _start_line(
    config: Config, model: Classifier, sources: dict[str, Source], workdir: Path
) -> str:
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    train, val = sources["train"], sources["val"]
    device = jax.devices()[0]
    return (
        f"{model.name}: {parameters:,} parameters; {len(train):,} images to train on, {len(val):,} "
        f"to validate, {train.num_classes} classes; {jax.device_count()} x {device.device_kind}, "
        f"{config.dtype}; in {workdir}"
    )


class _Run:
    """The parts of a run, and its state as it moves through the epochs."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        model: Classifier,
        sources: dict[str, Source],
        checkpoints: Checkpoints,
        torch_run: TorchRun | None,
    ):
        self.config = config
        self.model = model
        self.sources = sources
        self.checkpoints = checkpoints
        self.mesh = data_mesh()
        self.steps = _steps_per_epoch(config, sources["train"])
        schedule = make_schedule(config, self.steps)
        optimizer = make_optimizer(config, schedule)
        self.train_step = _train_step(config, model, optimizer, schedule, self.mesh)
        self._start(init_state(model, optimizer, self.mesh), torch_run)
        self.writers = make_writers(config, workdir, self.step)
        self.profile = Profile(workdir / "profile" if config.profile else None)
        self.compiled = False

    @property
    def step(self) -> int:
        return int(self.state.step)

    def _start(self, fresh: TrainState, torch_run: TorchRun | None) -> None:
        """Sets the state to begin with, and the first epoch to run."""
        restored = self.checkpoints.restore_latest(like=fresh)
        self.state, evaluated = fresh, False
        if restored is not None:
            self.state, evaluated = restored[0], restored[1].top1 is not None
        elif torch_run is not None:
            self.state = replicate(torch_run.state(fresh, self.steps), self.mesh)
            self._save(torch_run.epoch, None)
        # An epoch that is trained and not evaluated is run once more, without steps.
        epochs, within = divmod(self.step, self.steps)
        self.first_epoch = epochs + 1 if evaluated or within or epochs == 0 else epochs
        if self.step:
            place = f"step {within} behind epoch {epochs}" if within else f"epoch {epochs}"
            log_line(f"continuing after {place} of {self.config.num_epochs}")

    def train(self, stop: StopRequest) -> None:
        """Trains to the last epoch, from wherever the state stands."""
        batches = self._batches(self.step)
        with stop.from_step_to_step():
            try:
                for epoch in range(self.first_epoch, self.config.num_epochs + 1):
                    self._epoch(epoch, batches, stop)
            finally:
                self.profile.stop()
                for writer in self.writers:
                    writer.close()

    def _batches(self, start_step: int) -> Iterator[Any]:
        """Endless batches on the devices."""
        config = self.config
        place = {"seed": config.seed, "start_step": start_step}
        batches = training_batches(self.sources["train"], config.batch_size, config.data, **place)
        return (batch for _, batch in put_ahead(batches, partial(put_batch, mesh=self.mesh)))

    def _epoch(self, epoch: int, batches: Iterator[Any], stop: StopRequest) -> None:
        """Trains what is left of an epoch, evaluates, saves and reports."""
        began, first_step = time.perf_counter(), self.step
        numbers = self._train_epoch(epoch, batches, stop)
        try:
            if self.step < epoch * self.steps:
                raise Interrupted
            with stop.interruptible():
                if self.config.recalibrate_batches:
                    self._recalibrate()
                accuracy = self._accuracy()
        except Interrupted:
            raise self._stopped(epoch) from None
        numbers |= {f"val_{name}": accuracy[name] for name in ("loss", "top1", "top5")}
        self._check_finite(numbers["val_loss"], self.step, numbers.get("learning_rate"))
        self._save(epoch, accuracy["top1"])
        self._write({"epoch": epoch, **numbers})
        seconds = time.perf_counter() - began
        trained = self.step - first_step
        left = (self.config.num_epochs - epoch) * seconds if trained == self.steps else 0
        log_line(epoch_line(epoch, self.config.num_epochs, numbers, left))
        if stop.reached(self.step):
            raise self._stopped(epoch)

    def _train_epoch(
        self, epoch: int, batches: Iterator[Any], stop: StopRequest
    ) -> dict[str, float]:
        """Steps to the end of the epoch, or to where the run was told to stop.

        Metrics are fetched one step late, so that the devices never wait for the host.
        """
        meter = Meter(self.config.batch_size)
        title = f"epoch {epoch}/{self.config.num_epochs}"
        done = self.step - (epoch - 1) * self.steps
        learning_rate, pending = None, None
        with ProgressBar(title, self.steps, done) as bar:
            for step in range(self.step, epoch * self.steps):
                began = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - began
                metrics = self._step(batch, meter)
                if pending is not None:
                    learning_rate = self._count(meter, bar, *pending)
                pending = (step, metrics, waited)
                if stop.reached(step + 1):
                    break
            if pending is not None:
                learning_rate = self._count(meter, bar, *pending)
        if learning_rate is None:
            return {}
        return {**meter.epoch(), "learning_rate": learning_rate}

    def _step(self, batch: Any, meter: Meter) -> dict[str, Array]:
        self.profile.before_step(self.state)
        began = time.perf_counter()
        self.state, metrics = self.train_step(self.state, batch)
        if not self.compiled:
            self.compiled = True
            seconds = time.perf_counter() - began
            meter.leave_out(seconds)
            log_line(f"compiled the training step in {seconds:.1f} s")
        return metrics

    def _count(
        self, meter: Meter, bar: ProgressBar, step: int, metrics: dict[str, Array], waited: float
    ) -> float:
        """Takes up the metrics of a step once it is done; returns its learning rate."""
        values = {name: float(value) for name, value in metrics.items()}
        rate = values["learning_rate"]
        self._check_finite(values["loss"] + values["gradient_norm"], step + 1, rate)
        meter.add(values["loss"], values["correct"], waited)
        bar.advance(meter)
        if meter.steps % _REPORT_EVERY == 0:
            norm = values["gradient_norm"]
            self._write({**meter.report(), "learning_rate": rate, "gradient_norm": norm}, step + 1)
        return rate

    def _recalibrate(self) -> None:
        """Batch statistics of the first batches of training, the same ones each time."""
        batches = islice(self._batches(0), self.config.recalibrate_batches)
        self.state = recalibrated(self.model, self.state, batches, self.config, self.mesh)

    def _accuracy(self) -> Any:
        model = update_model(self.model, self.state)
        return accuracy_on(model, self.sources["val"], self.config, self.mesh)

    def _save(self, epoch: int, top1: float | None) -> None:
        self.checkpoints.save(
            self.state,
            epoch=epoch,
            top1=top1,
            num_classes=num_classes_of(self.model),
            config=self.config.to_dict(),
        )

    def _stopped(self, epoch: int) -> Stopped:
        latest = self.checkpoints.latest
        if latest is None or latest.step != self.step:
            self._save(self.step // self.steps, None)
        self.checkpoints.wait()
        return Stopped(
            f"stopped after step {self.step} (in epoch {epoch}), all is saved; the same command "
            "continues"
        )

    def _check_finite(self, value: float, step: int, learning_rate: float | None) -> None:
        if math.isfinite(value):
            return
        self.checkpoints.wait()
        latest = self.checkpoints.latest
        last = "there is no checkpoint yet"
        if latest is not None:
            last = f"the last good checkpoint is of step {latest.step} (epoch {latest.epoch})"
        rate = "" if learning_rate is None else f" at learning rate {learning_rate:.4g}"
        raise InputError(
            f"the loss or its gradient is no longer finite after step {step}{rate}; {last}. Try a "
            "lower config.optimizer.learning_rate or some warmup_epochs, in another --workdir"
        )

    def _write(self, numbers: Numbers, step: int | None = None) -> None:
        for writer in self.writers:
            writer.write(self.step if step is None else step, numbers)


def _train_step(config: Config, model: Classifier, optimizer, schedule, mesh):
    options = config.optimizer
    return make_train_step(
        model,
        optimizer,
        partial(preprocess, data=config.data),
        schedule=schedule,
        mesh=mesh,
        label_smoothing=options.label_smoothing,
        accumulation_steps=options.accumulation_steps,
        accumulate=options.accumulate,
        batch_stat_groups=config.batch_stat_groups,
    )


def _steps_per_epoch(config: Config, source: Source) -> int:
    steps = steps_per_epoch(source, config.batch_size)
    return min(steps, config.max_steps_per_epoch or steps)


def _check_sizes(config: Config, model: Classifier) -> None:
    """What would show only in the first step: images or batches too small for the net."""
    side = config.data.crop_size
    batch = config.batch_size // (config.optimizer.accumulation_steps * config.batch_stat_groups)
    image = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    model.train()
    graphdef, state = nnx.split(model)
    model.eval()
    try:
        jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, image)
    except ValueError as error:
        raise InputError(
            f"config.data.crop_size {side}, {batch} images in a part of a batch: {error}"
        ) from error
