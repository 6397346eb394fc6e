"""The log of a run: numbers to files and services, a progress bar, a line an epoch, a profile."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import jax

from aa_flax.config import LogConfig
from aa_flax.errors import InputError
from aa_flax.files import parse_json, replacing
from aa_flax.runtime import is_main_process, log_line, progress_bar
from aa_flax.training.run_folder import writing

Numbers = Mapping[str, float]

_REPORT_EVERY = 50  # steps between two rows of metrics.jsonl
_PROFILE_AFTER, _PROFILE_STEPS = 5, 5  # after compilation and the first fetches of data


class JsonLines:
    """`metrics.jsonl`: an object a line. Rows of steps that will be repeated are removed."""

    def __init__(self, path: Path, start_step: int):
        kept = [row for row in read_json_lines(path) if row["step"] <= start_step]
        self._path = path
        with writing(path), replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
            self._file = temporary.open("a")  # by its final name it could be somebody's link

    def write(self, step: int, numbers: Numbers) -> None:
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **numbers}) + "\n")
            self._file.flush()

    def close(self) -> None:
        with suppress(OSError):  # of a line that did not fit, which `write` has reported
            self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl`, without lines that were cut by the end of a run."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class TensorBoard:
    """Event files in `folder`. Needs the extra `tensorboard`, but neither TensorFlow nor torch."""

    def __init__(self, folder: Path):
        from tensorboard.summary import Writer as EventWriter

        self._writer = EventWriter(str(folder))

    def write(self, step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `aa_flax`, the same one when training resumes. Needs extra `wandb`."""

    def __init__(self, workdir: Path, config: dict[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports]

        path = workdir / "wandb_run_id"
        if not path.exists():
            with writing(path), replacing(path) as temporary:
                temporary.write_text(wandb.util.generate_id())
        self._run = wandb.init(
            project="aa_flax",
            name=config["name"],
            id=path.read_text(),
            resume="allow",
            dir=str(workdir),
            config=config,
        )

    def write(self, step: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


def check_writers(log: LogConfig) -> None:
    """Raises an InputError if a package is missing that `config.log` needs."""
    for extra, module in (("tensorboard", "tensorboard.summary"), ("wandb", "wandb")):
        try:
            if log[extra]:
                import_module(module)
        except ImportError as error:
            raise InputError(
                f"config.log.{extra} needs the package {extra}: pip install 'aa_flax[{extra}]', or "
                "leave it out; metrics.jsonl is always written"
            ) from error


class RunLog:
    """Logs a run from this start on: its steps, its epochs, and a profile if the config asks.

    A context manager, which closes what it writes to; only the main process writes.
    """

    def __init__(self, workdir: Path, config: dict[str, Any], start_step: int):
        self._writers = []
        if is_main_process():
            self._writers.append(JsonLines(workdir / "metrics.jsonl", start_step))
            if config["log"]["tensorboard"]:
                self._writers.append(TensorBoard(workdir / "tensorboard"))
            if config["log"]["wandb"]:
                self._writers.append(WeightsAndBiases(workdir, config))
        self.profile = Profile(workdir / "profile" if config["profile"] else None)
        self._num_epochs, self._batch_size = config["num_epochs"], config["batch_size"]
        self._compiled = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.profile.stop()
        for writer in self._writers:
            writer.close()

    @contextmanager
    def epoch(self, epoch: int, steps: int, done: int) -> Iterator[None]:
        """Begins the log of an epoch of which `done` steps are done; shows a bar over its steps."""
        self._began = self._last_report = time.perf_counter()
        self._rate = None
        self._totals: dict[str, float] = dict.fromkeys(("steps", "loss", "correct", "waited"), 0.0)
        self._at_report = self._totals.copy()
        title = f"epoch {epoch}/{self._num_epochs}"
        with progress_bar(steps, title, "step", initial=done) as self._bar:
            yield

    def called_step(self, seconds: float) -> None:
        """Logs the compilation; called after each step, with the seconds of its call."""
        if not self._compiled:
            self._compiled = True
            self._began += seconds
            self._last_report += seconds
            log_line(f"compiled the training step in {seconds:.1f} s")

    def add(self, step: int, values: Numbers, waited: float) -> None:
        """Adds the metrics of a step, and the seconds that it waited for data."""
        self._rate = values["learning_rate"]
        for name, value in {"steps": 1, "waited": waited, **values}.items():
            if name in self._totals:
                self._totals[name] += value
        self._bar.update()
        if not self._bar.disable:
            means = self.epoch_means()
            self._bar.set_postfix_str(
                f"loss {means['train_loss']:.3f}, top-1 {means['train_top1']:.1f} %, "
                f"{means['images_per_second']:.0f} img/s, data {means['data_wait']:.0f} %",
                refresh=False,
            )
        if self._totals["steps"] % _REPORT_EVERY == 0:
            since, self._last_report = self._last_report, time.perf_counter()
            means = self._means(self._at_report, self._last_report - since)
            self._at_report = self._totals.copy()
            rates = {name: values[name] for name in ("learning_rate", "gradient_norm")}
            self._write(step, means | rates)

    def epoch_means(self) -> dict[str, float]:
        """Returns the means over the epoch's steps of this start; nothing if it had none."""
        if self._rate is None:
            return {}
        none = dict.fromkeys(self._totals, 0.0)
        means = self._means(none, time.perf_counter() - self._began)
        return means | {"learning_rate": self._rate}

    def _means(self, before: Numbers, seconds: float) -> dict[str, float]:
        """Returns loss, top-1 in percent, images per second, percent of time waiting for data."""
        steps, loss, correct, waited = (self._totals[k] - before[k] for k in self._totals)
        images = steps * self._batch_size
        return {
            "train_loss": loss / images,
            "train_top1": 100 * correct / images,
            "images_per_second": images / seconds,
            "data_wait": 100 * waited / seconds,
        }

    def end_epoch(self, epoch: int, step: int, numbers: Numbers, seconds_left: float) -> None:
        """Writes and prints the numbers of an epoch: training (if it had steps) and validation."""
        self._write(step, {"epoch": epoch, **numbers})
        templates = (
            "train loss {train_loss:.4f} top-1 {train_top1:6.2f} %",
            "val loss {val_loss:.4f} top-1 {val_top1:6.2f} %",
            "lr {learning_rate:.2g}",
            "{images_per_second:.0f} img/s",
            "data wait {data_wait:.0f} %",
        )
        trained = "train_loss" in numbers
        parts = [f"epoch {epoch:3d}/{self._num_epochs}"]
        parts += [t.format(**numbers) for t in templates if trained or t.startswith("val")]
        if seconds_left > 0:
            parts.append(f"left {timedelta(seconds=math.ceil(seconds_left))}")
        log_line("  ".join(parts))

    def _write(self, step: int, numbers: Numbers) -> None:
        for writer in self._writers:
            writer.write(step, numbers)


class Profile:
    """Traces steps 6 to 10 of this start of a run into a folder, for TensorBoard or Perfetto."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._steps = 0
        self._running = self._written = False

    def before_step(self, state: Any) -> None:
        """Begins or ends the trace, once the computation of the step's state is done."""
        if self._folder is None:
            return
        if self._steps == _PROFILE_AFTER:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._steps == _PROFILE_AFTER + _PROFILE_STEPS:
            jax.block_until_ready(state)
            self.stop()
        self._steps += 1

    def stop(self) -> None:
        """Ends the trace, or reports that there was none."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._written = True
            log_line(f"profile written to {self._folder}")
        elif self._folder is not None and not self._written:
            log_line(
                f"no profile: it begins after {_PROFILE_AFTER} steps, this start had {self._steps}"
            )
