"""Flicker: how often a net changes its mind from frame to frame of a clip."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from aa_flax.data.clips import Clip as Frames
from aa_flax.data.pixels import center_image
from aa_flax.errors import real
from aa_flax.evaluation.flicker import Flicker, flicker, mean_fps
from aa_flax.evaluation.measure import Column, Option, Result, Subject
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.own_images import (
    CLASS_NAMES,
    PicturesMeasure,
    PicturesOption,
    check_one_process,
    check_size_of,
    class_namer,
)
from aa_flax.evaluation.plots.own_images import plot_flicker
from aa_flax.runtime import progress_bar


class Clip(PicturesMeasure):
    """Flips of the top-1 class a second, lengths of runs, and a probability over time.

    Each frame is seen as any image is: resized, and cropped to its middle. The numbers are those of
    `aa_flax.evaluation.flicker.FlickerNumbers`.
    """

    options = (
        PicturesOption("clip", "flicker on a clip: a folder of frames, or a video (PyAV)"),
        Option(
            "fps", "--clip: frames a second; default: by a video's times, 25 of frames", None, float
        ),
        Option("window", "--clip: seconds of the moving average", 0.5, float),
        CLASS_NAMES,
    )
    columns = (
        Column(
            "flips a second",
            ("flips_per_second",),
            unit="",
            note="changes of the top-1 class between successive frames of the clip, a second",
        ),
        Column(
            "flips a second, smoothed",
            ("flips_per_second_smoothed",),
            unit="",
            note="the same of the likeliest class of probabilities averaged over time",
        ),
        Column(
            "median run (s)",
            ("run_median_seconds",),
            unit="",
            note="median time for which the top-1 class stays the same, in seconds",
        ),
    )
    plot = staticmethod(plot_flicker)
    alike = ("fps",)

    def settings(self, subject: Subject) -> Result:
        options = subject.options
        asked = {"window_asked": options["window"], "class_names": options["class_names"]}
        return {**_frames(subject).described(), **asked}

    def check(self, subject: Subject) -> None:
        check_one_process("clip")
        real("--window", subject.options["window"], least=0)
        super().check(subject)
        clip = _frames(subject)
        clip.check()
        size, crop = clip.first_size(), subject.settings.crop_size
        check_size_of(clip.name, size, subject.settings, crop)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        clip = _frames(subject)
        classes = subject.predictor.num_classes(subject.settings.crop_size)
        name_of = class_namer(subject, classes)
        logits, times = _logits(subject, clip)
        window = subject.options["window"]
        found = flicker(logits, seconds=clip.seconds(times), window_seconds=window)
        told: Result = {"class": name_of(found.most_frequent), "lost": clip.log_lost()}
        told |= clip.differences(times)
        return {**found.numbers(), **told, **self.store(subject, _arrays(found, name_of))}

    def line(self, result: Result) -> str:
        how = {"default": ", the default", "times": ", by their times"}.get(result["fps_from"], "")
        missing = result.get("seconds_missing")
        return (
            f"{'clip':12} {result['flips_per_second']:.2f} flips a second, "
            f"{result['flips_per_second_smoothed']:.2f} averaged over {result['window']} frames   "
            f"median run {result['run_median_seconds']:.2f} s   ({result['num_frames']} frames, "
            f"{result['fps']:g} a second{how}{f', {missing:.2f} s missing' if missing else ''})"
        )


def _frames(subject: Subject) -> Frames:
    return Frames(subject.options["clip"], subject.options["fps"])


def _logits(
    subject: Subject, clip: Frames
) -> tuple[Float[np.ndarray, "n classes"], list[float | None]]:
    """What the net says of each frame, in batches of one size, the last filled up; their times."""
    settings, size, said, times = subject.settings, subject.settings.batch(), [], []
    how = (settings.resize_size, settings.crop_size, settings.interpolation)
    with progress_bar(None, "clip", "frame") as bar:
        for batch in _batches(iter(clip), size):
            missing = size - len(batch) if said else 0
            crops = [center_image(frame, *how) for _, frame in batch]
            images = np.stack(crops + missing * crops[-1:])
            said.append(np.asarray(subject.predictor.logits(images))[: len(batch)])
            times += [time for time, _ in batch]
            bar.update(len(batch))
    return np.concatenate(said), times


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(items, size)):
        yield batch


def _arrays(found: Flicker, name_of: Callable[[int], str]) -> dict[str, np.ndarray]:
    """What the figure is drawn from, and every frame's answer."""
    said = np.unique([*found.top1, *found.smoothed_top1])
    arrays = {key: np.asarray(value) for key, value in found._asdict().items()}
    arrays |= {"class": said, "class_name": np.array([name_of(int(i)) for i in said])}
    runs = {"run_lengths": found.run_lengths, "run_seconds": found.run_seconds}
    return arrays | runs | {"fps": np.asarray(mean_fps(found.seconds))}
