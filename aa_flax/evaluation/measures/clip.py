"""Flicker: how often the top-1 class changes from frame to frame of a clip."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from aa_flax.data.clips import Clip as Frames
from aa_flax.data.pixels import center_image
from aa_flax.errors import InputError, real
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
from aa_flax.evaluation.predict import in_batches
from aa_flax.evaluation.settings import Settings
from aa_flax.runtime import progress_bar


class Flicker(NamedTuple):
    """Predictions of a model for n frames."""

    top1: Int[np.ndarray, " n"]  # the likeliest class of each frame
    smoothed_top1: Int[np.ndarray, " n"]  # that of the averaged probabilities
    most_frequent: int  # the class of most frames, the first of equals
    probability: Float[np.ndarray, " n"]  # of the most frequent class, in 0..1
    smoothed: Float[np.ndarray, " n"]  # its moving average
    window: int  # frames of that average, odd
    seconds: Float[np.ndarray, " n"]  # the time of each frame, ascending

    @property
    def run_lengths(self) -> Int[np.ndarray, " runs"]:
        """The lengths of stretches of frames with one class, in the order of time."""
        ends = np.flatnonzero(np.diff(self.top1)) + 1
        return np.diff(np.concatenate([[0], ends, [len(self.top1)]]))

    @property
    def run_seconds(self) -> Float[np.ndarray, " runs"]:
        edges = np.append(self.seconds, self.seconds[-1] + 1 / mean_fps(self.seconds))
        return np.diff(edges[np.append(0, np.cumsum(self.run_lengths))])

    def numbers(self) -> Result:
        """Computes rates of flips and lengths of runs, stretches of frames with one top-1 class.

        The first and the last run are cut by the ends of the clip and count as they are.
        """
        runs, count, fps = self.run_lengths, len(self.top1), mean_fps(self.seconds)
        rates = [float((c[1:] != c[:-1]).mean() * fps) for c in (self.top1, self.smoothed_top1)]
        return {
            "num_frames": count,
            "fps": fps,  # the mean from the first frame to the last
            "seconds": count / fps,
            "flips": len(runs) - 1,  # between successive frames
            "flips_per_second": rates[0],
            "window": self.window,
            "window_seconds": self.window / fps,
            "flips_per_second_smoothed": rates[1],
            "runs": len(runs),
            "run_median": float(np.median(runs)),  # in frames
            "run_median_seconds": float(
                np.median(self.run_seconds)
            ),  # with 1 / fps for the last frame
            "run_shortest": int(runs.min()),
            "run_longest": int(runs.max()),
            # Percent of the frames whose top-1 class is the most frequent one.
            "class_share": 100 * float((self.top1 == self.most_frequent).mean()),
        }


def flicker(
    logits: Float[np.ndarray, "n classes"],
    *,
    seconds: Float[np.ndarray, " n"],
    window_seconds: float,
) -> Flicker:
    """Computes a model's predictions for the frames of a clip, as they are and smoothed.

    Smoothing is a centred moving average of the probabilities over the odd number of frames whose
    duration is nearest to `window_seconds`; at the ends, over the frames that exist.

    Raises:
        InputError: fewer than two frames, or outputs that are not finite.
    """
    if len(logits) < 2:
        raise InputError(f"{len(logits)} frames; flips need two or more")
    bad = np.flatnonzero(~np.isfinite(logits).all(1))
    if len(bad):
        raise InputError(
            f"the model's output is not finite for {len(bad)} of {len(logits)} frames, the first "
            f"of them frame {bad[0]}; its weights are broken, or its training diverged"
        )
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    fps = mean_fps(seconds)
    window = odd_window(fps, window_seconds)
    averaged = probabilities
    if window > 1:
        averaged = moving_average(probabilities, seconds * fps, window)
    top1 = logits.argmax(1)
    most = int(np.bincount(top1).argmax())
    curves = probabilities[:, most], averaged[:, most]
    return Flicker(top1, averaged.argmax(1), most, *curves, window, seconds)


def mean_fps(seconds: Float[np.ndarray, " n"]) -> float:
    """Returns frames a second from the first to the last."""
    return float((len(seconds) - 1) / (seconds[-1] - seconds[0]))


def odd_window(fps: float, seconds: float) -> int:
    """Returns the odd number of frames, at least 1, whose duration is nearest to `seconds`."""
    return 2 * max(0, round((fps * seconds - 1) / 2)) + 1


def moving_average(
    values: Float[np.ndarray, "n k"], position: Float[np.ndarray, " n"], window: int
) -> Float[np.ndarray, "n k"]:
    """Averages the rows within `window / 2` of each row's position; positions ascend."""
    total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, 0)])
    first, end = (np.searchsorted(position, position + side * window / 2) for side in (-1, 1))
    return (total[end] - total[first]) / (end - first)[:, None]


def check_clip(clip: Frames, settings: Settings) -> None:
    """Raises an InputError if the frames differ in size or are smaller than the crops."""
    clip.check()
    check_size_of(clip.name, clip.first_size(), settings, settings.crop_size)


def centre_crops(
    clip: Frames, settings: Settings, times: list[float | None]
) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
    """Yields the centre crop of each frame, and appends its time to `times`."""
    for time, frame in clip:
        times.append(time)
        yield center_image(frame, settings.resize_size, settings.crop_size, settings.interpolation)


FPS = Option(  # one option, which the measures have in common
    "fps", "--clip: frames a second; default: by a video's times, 25 of frames", None, float
)


class Clip(PicturesMeasure):
    """Flips of the top-1 class a second, lengths of runs, and a probability over time."""

    options = (
        PicturesOption("clip", "flicker on a clip: a folder of frames, or a video (PyAV)"),
        FPS,
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
            note="the same for the likeliest class of probabilities averaged over time",
        ),
        Column(
            "median run (s)",
            ("run_median_seconds",),
            unit="",
            note="median time during which the top-1 class stays the same, in seconds",
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
        check_clip(_frames(subject), subject.settings)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        clip, predictor, settings = _frames(subject), subject.predictor, subject.settings
        name_of = class_namer(subject, predictor.num_classes(settings.crop_size))
        times: list[float | None] = []
        with progress_bar(None, "clip", "frame") as bar:
            crops = centre_crops(clip, settings, times)
            logits = np.stack([*in_batches(predictor.logits, crops, settings.batch(), bar)])
        window = subject.options["window"]
        found = flicker(logits, seconds=clip.seconds(times), window_seconds=window)
        facts: Result = {"class": name_of(found.most_frequent), "lost": clip.log_lost()}
        facts |= clip.differences(times) | self.store_and_plot(subject, _arrays(found, name_of))
        return {**found.numbers(), **facts}

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


def _arrays(found: Flicker, name_of: Callable[[int], str]) -> dict[str, np.ndarray]:
    """Returns the data of the plot, and the prediction for every frame."""
    classes = np.unique([*found.top1, *found.smoothed_top1])
    return {
        **found._asdict(),
        "class": classes,
        "class_name": np.array([name_of(int(i)) for i in classes]),
        "run_lengths": found.run_lengths,
        "run_seconds": found.run_seconds,
        "fps": np.array(mean_fps(found.seconds)),
    }
