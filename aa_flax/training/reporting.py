"""What a run tells: numbers to files and services, a progress bar, a line an epoch."""

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from aa_flax.config import Config
from aa_flax.errors import InputError
from aa_flax.files import parse_json, replacing
from aa_flax.runtime import is_main_process, progress_bar
from aa_flax.training.workdir import writing

Numbers = Mapping[str, float]


class Writer(Protocol):
    """Somewhere that numbers go, by step."""

    def write(self, step: int, numbers: Numbers) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: an object a line. What stands there of steps to be repeated is cut."""

    def __init__(self, path: Path, start_step: int):
        kept = [row for row in read_json_lines(path) if row["step"] <= start_step]
        self._path = path
        with writing(path), replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
            self._file = temporary.open("a")  # opened by its final name it could be another's link

    def write(self, step: int, numbers: Numbers) -> None:
        """Adds a line.

        Raises:
            InputError: there is no room for it.
        """
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **numbers}) + "\n")
            self._file.flush()

    def close(self) -> None:
        with suppress(OSError):  # a line without room, which `write` has reported
            self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; what is none, as a line cut short by its run, is left out."""
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
    """A run of the project `aa_flax`, the same one when training continues. Extra `wandb`."""

    def __init__(self, config: Config, workdir: Path):
        import wandb  # pyright: ignore[reportMissingImports]

        path = workdir / "wandb_run_id"
        if not path.exists():
            with writing(path), replacing(path) as temporary:
                temporary.write_text(wandb.util.generate_id())
        self._run = wandb.init(
            project="aa_flax",
            name=config.name,
            id=path.read_text(),
            resume="allow",
            dir=str(workdir),
            config=config.to_dict(),
        )

    def write(self, step: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


def check_writers(config: Config) -> None:
    """That the packages are there which the config's `log` needs.

    Raises:
        InputError: one is missing.
    """
    for extra, module in (("tensorboard", "tensorboard.summary"), ("wandb", "wandb")):
        try:
            if config.log[extra]:
                import_module(module)
        except ImportError as error:
            raise InputError(
                f"config.log.{extra} needs the package {extra}: pip install 'aa_flax[{extra}]', or "
                "leave it out; metrics.jsonl is written always"
            ) from error


def make_writers(config: Config, workdir: Path, start_step: int) -> list[Writer]:
    """What the config asks for; nothing in the processes that do not report."""
    if not is_main_process():
        return []
    writers: list[Writer] = []
    if config.log.tensorboard:
        writers.append(TensorBoard(workdir / "tensorboard"))
    if config.log.wandb:
        writers.append(WeightsAndBiases(config, workdir))
    return [*writers, JsonLines(workdir / "metrics.jsonl", start_step)]


class Meter:
    """Means over the steps of an epoch so far, and over those since the last report.

    Args:
        batch_size: images a step.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._began = self._last_report = time.perf_counter()
        self.steps = 0
        self._totals: dict[str, float] = {"loss": 0.0, "correct": 0.0, "waited": 0.0}
        self._at_report = {**self._totals, "steps": 0}

    def add(self, loss: float, correct: float, waited: float) -> None:
        """A step: its summed loss, its correct images, the seconds it waited for data."""
        self.steps += 1
        for name, value in (("loss", loss), ("correct", correct), ("waited", waited)):
            self._totals[name] += value

    def leave_out(self, seconds: float) -> None:
        """Time that is not training's."""
        self._began += seconds
        self._last_report += seconds

    def report(self) -> Numbers:
        """The means over the steps since the last report."""
        since, self._last_report = self._last_report, time.perf_counter()
        before, self._at_report = self._at_report, {**self._totals, "steps": self.steps}
        return self._means(before, self._last_report - since)

    def epoch(self) -> Numbers:
        """The means over the whole epoch."""
        none = dict.fromkeys(self._at_report, 0.0)
        return self._means(none, time.perf_counter() - self._began)

    def _means(self, before: Mapping[str, float], seconds: float) -> Numbers:
        """`loss`, `top1` in percent, `images_per_second`, `data_wait`: percent of the time."""
        images = (self.steps - before["steps"]) * self._batch_size
        if images == 0:
            return {}
        loss, correct, waited = (self._totals[k] - before[k] for k in self._totals)
        return {
            "train_loss": loss / images,
            "train_top1": 100 * correct / images,
            "images_per_second": images / seconds,
            "data_wait": 100 * waited / seconds,
        }


class ProgressBar:
    """A bar over the steps of an epoch, in the process that reports and on a terminal alone."""

    def __init__(self, title: str, total: int, done: int):
        self._bar = progress_bar(total, title, "step", initial=done)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def advance(self, meter: Meter) -> None:
        self._bar.update()
        if not self._bar.disable:
            numbers = meter.epoch()
            self._bar.set_postfix_str(
                f"loss {numbers['train_loss']:.3f}, top-1 {numbers['train_top1']:.1f} %, "
                f"{numbers['images_per_second']:.0f} img/s, data {numbers['data_wait']:.0f} %",
                refresh=False,
            )


def epoch_line(epoch: int, num_epochs: int, numbers: Numbers, seconds_left: float) -> str:
    """One readable line: training (where there was any), validation, rate, speed, time left."""
    parts = [f"epoch {epoch:3d}/{num_epochs}"]
    if "train_loss" in numbers:
        parts.append(f"train loss {numbers['train_loss']:.4f} top-1 {numbers['train_top1']:6.2f} %")
    parts.append(f"val loss {numbers['val_loss']:.4f} top-1 {numbers['val_top1']:6.2f} %")
    if "train_loss" in numbers:
        parts.append(f"lr {numbers['learning_rate']:.2g}")
        parts.append(f"{numbers['images_per_second']:.0f} img/s")
        parts.append(f"data wait {numbers['data_wait']:.0f} %")
    if seconds_left > 0:
        parts.append(f"left {timedelta(seconds=math.ceil(seconds_left))}")
    return "  ".join(parts)
