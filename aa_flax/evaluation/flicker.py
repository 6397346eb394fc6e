"""How often a net changes its mind from frame to frame, before and after averaging over time."""

from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float, Int

from aa_flax.errors import InputError


class FlickerNumbers(TypedDict):
    """Numbers of one clip.

    A run is a stretch of frames with one top-1 class; the first and the last are cut by the ends
    of the clip and count as they are.

    Attributes:
        fps: frames a second, the mean from the first frame to the last.
        seconds: `num_frames / fps`.
        flips: changes of the top-1 class between successive frames.
        flips_per_second: `flips` by the seconds from the first frame to the last.
        window: frames that the moving average is over at this rate; `window_seconds` is their time.
        flips_per_second_smoothed: the same rate of the likeliest class of the averaged
            probabilities.
        runs: how many runs there are; `run_median`, `run_shortest` and `run_longest` are their
            lengths in frames, `run_median_seconds` that of their times, the last frame's being
            `1 / fps`.
        class_share: percent of the frames whose top-1 class is the most frequent one.
    """

    num_frames: int
    fps: float
    seconds: float
    flips: int
    flips_per_second: float
    window: int
    window_seconds: float
    flips_per_second_smoothed: float
    runs: int
    run_median: float
    run_median_seconds: float
    run_shortest: int
    run_longest: int
    class_share: float


class Flicker(NamedTuple):
    """What a net said of each of n frames.

    Attributes:
        top1: the likeliest class of each frame; `smoothed_top1`: of the averaged probabilities.
        most_frequent: the class that most frames have (the first of equals).
        probability: of the most frequent class, in 0..1; `smoothed`: its moving average.
        window: frames of that average, odd.
        seconds: when each frame is shown, ascending.
    """

    top1: Int[np.ndarray, " n"]
    smoothed_top1: Int[np.ndarray, " n"]
    most_frequent: int
    probability: Float[np.ndarray, " n"]
    smoothed: Float[np.ndarray, " n"]
    window: int
    seconds: Float[np.ndarray, " n"]

    @property
    def run_lengths(self) -> Int[np.ndarray, " runs"]:
        return run_lengths(self.top1)

    @property
    def run_seconds(self) -> Float[np.ndarray, " runs"]:
        edges = np.append(self.seconds, self.seconds[-1] + 1 / mean_fps(self.seconds))
        return np.diff(edges[np.append(0, np.cumsum(self.run_lengths))])

    def numbers(self) -> FlickerNumbers:
        """Rates of flips, lengths of runs."""
        runs, count, fps = self.run_lengths, len(self.top1), mean_fps(self.seconds)
        return {
            "num_frames": count,
            "fps": fps,
            "seconds": count / fps,
            "flips": len(runs) - 1,
            "flips_per_second": flips_per_second(self.top1, fps),
            "window": self.window,
            "window_seconds": self.window / fps,
            "flips_per_second_smoothed": flips_per_second(self.smoothed_top1, fps),
            "runs": len(runs),
            "run_median": float(np.median(runs)),
            "run_median_seconds": float(np.median(self.run_seconds)),
            "run_shortest": int(runs.min()),
            "run_longest": int(runs.max()),
            "class_share": 100 * float((self.top1 == self.most_frequent).mean()),
        }


def flicker(
    logits: Float[np.ndarray, "n classes"],
    *,
    seconds: Float[np.ndarray, " n"],
    window_seconds: float,
) -> Flicker:
    """The answers of a net to the frames of a clip, as they are and smoothed.

    The smoothed ones are a centred moving average of the probabilities over the time of the odd
    number of frames nearest to `window_seconds`; at the ends, over those frames that are there.

    Args:
        seconds: when each frame is shown, ascending.

    Raises:
        InputError: fewer than two frames, or outputs that are not finite.
    """
    if len(logits) < 2:
        raise InputError(f"{len(logits)} frames; flips need two or more")
    bad = np.flatnonzero(~np.isfinite(logits).all(1))
    if len(bad):
        raise InputError(
            f"the net's output is not finite for {len(bad)} of {len(logits)} frames, the first of "
            f"them frame {bad[0]}; its weights are broken, or its training diverged"
        )
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    fps = mean_fps(seconds)
    window = odd_window(fps, window_seconds)
    averaged = (
        probabilities if window == 1 else moving_average(probabilities, seconds * fps, window)
    )
    top1 = logits.argmax(1)
    most_frequent = int(np.bincount(top1).argmax())
    return Flicker(
        top1,
        averaged.argmax(1),
        most_frequent,
        probabilities[:, most_frequent],
        averaged[:, most_frequent],
        window,
        seconds,
    )


def mean_fps(seconds: Float[np.ndarray, " n"]) -> float:
    """Frames a second from the first to the last."""
    return float((len(seconds) - 1) / (seconds[-1] - seconds[0]))


def odd_window(fps: float, seconds: float) -> int:
    """The odd number of frames nearest to that many seconds, 1 or more."""
    return 2 * max(0, round((fps * seconds - 1) / 2)) + 1


def moving_average(
    values: Float[np.ndarray, "n k"], place: Float[np.ndarray, " n"], window: int
) -> Float[np.ndarray, "n k"]:
    """The mean over the rows within `window / 2` of each one's place; places ascend."""
    total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, 0)])
    first, end = (np.searchsorted(place, place + side * window / 2) for side in (-1, 1))
    return (total[end] - total[first]) / (end - first)[:, None]


def run_lengths(top1: Int[np.ndarray, " n"]) -> Int[np.ndarray, " runs"]:
    """How many successive frames have one class, in the order of time."""
    ends = np.flatnonzero(np.diff(top1)) + 1
    return np.diff(np.concatenate([[0], ends, [len(top1)]]))


def flips_per_second(top1: Int[np.ndarray, " n"], fps: float) -> float:
    """Changes between successive frames, as a share of them, times frames a second."""
    return float((top1[1:] != top1[:-1]).mean() * fps)
