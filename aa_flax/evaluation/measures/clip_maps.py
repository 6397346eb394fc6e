"""Flicker of masks, maps and points on a clip: how much they change from frame to frame.

With f a function of images and x_1 ... x_n successive frames, whose content moves by `motion`
pixels from one frame to the next (T; nothing on a still clip, where only noise changes),

    f(x_(t+1)) is compared with T f(x_t)

where both see the same content: labels of pixels by `mask_flicker`, values by `map_flicker`, and
positions by `point_flicker`. All are zero for a function that does not flicker.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from aa_flax.data.clips import Clip as Frames
from aa_flax.errors import InputError, integer, real
from aa_flax.evaluation.measure import Column, Measure, Result, Subject
from aa_flax.evaluation.measures.clip import FPS, centre_crops, check_clip, mean_fps
from aa_flax.evaluation.measures.maps import check_masks, image_batches, maps_of
from aa_flax.evaluation.measures.points import points_of
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.own_images import PicturesOption, check_one_process
from aa_flax.evaluation.predict import Predictor, predictor_of

Read = Callable[[Predictor, Any], Any]  # a function's outputs for a batch of frames


def mask_flicker(
    predict: Any,
    frames: np.ndarray,
    *,
    fps: float,
    motion: tuple[int, int] = (0, 0),
    batch_size: int = 32,
    jit: bool | None = None,
) -> Result:
    """Computes how many pixels change their label from frame to frame.

    Args:
        predict: a model, or a function from normalised float32 images `(N, H, H, 3)` to logits of
            each pixel `(N, h, h, classes)`; the likeliest class is the label.
        frames: `(n, H, H, 3)` with values in 0..255, two or more.
        fps: frames a second.
        motion: pixels, down and right, by which the content moves from a frame to the next.
        batch_size: frames in a call.
        jit: whether it is a function of JAX; None: detect it by tracing.

    Returns:
        `changed`, the mean percentage of pixels with another label than in the frame before, and
        `changed_per_second`, how often a pixel changes.

    Raises:
        InputError: fewer than two frames, frames that are not square, a motion as large as they
            are, fps of 0 or less, or an output that is not a map.

    Examples:
        >>> frames = np.zeros((3, 8, 8, 3), np.uint8)
        >>> frames[1, :, :4] = 255  # half of the second frame is bright
        >>> def bright(x):  # two classes
        ...     return jax.numpy.stack([-x[..., 0], x[..., 0]], -1)
        >>> mask_flicker(bright, frames, fps=25)["changed"]
        50.0
    """

    def labels(predictor: Predictor, batch: np.ndarray) -> np.ndarray:
        maps = maps_of(predictor, jnp.asarray(batch))
        check_masks(predictor, maps.shape[-1])
        return np.asarray(maps.argmax(-1))

    clip = _Clip.checked(frames, fps, motion)
    pairs = clip.common(clip.outputs(labels, predict, batch_size, jit))
    changed = float(np.mean([np.mean(before != after) for before, after in pairs]))
    return clip.rates("changed", changed, unit=100)


def map_flicker(
    predict: Any,
    frames: np.ndarray,
    *,
    fps: float,
    motion: tuple[int, int] = (0, 0),
    batch_size: int = 32,
    jit: bool | None = None,
) -> Result:
    """Computes how much the values of maps or images change from frame to frame.

    The arguments are those of `mask_flicker`, for a function to maps `(N, h, h, C)`.

    Returns:
        `difference`, the mean absolute difference from the frame before, in the unit of the maps,
        and `difference_per_second`.

    Raises:
        InputError: as `mask_flicker`.

    Examples:
        >>> frames = np.stack([np.full((8, 8, 3), 128 + 8 * (t % 2), np.uint8) for t in range(4)])
        >>> round(map_flicker(lambda x: x[..., :1], frames, fps=25)["difference"], 3)  # 8/255/0.229
        0.137
    """
    clip = _Clip.checked(frames, fps, motion)
    pairs = clip.common(clip.outputs(maps_of, predict, batch_size, jit))
    difference = float(np.mean([np.abs(after - before).mean() for before, after in pairs]))
    return clip.rates("difference", difference)


def point_flicker(
    predict: Any,
    frames: np.ndarray,
    *,
    fps: float,
    motion: tuple[int, int] = (0, 0),
    batch_size: int = 32,
    jit: bool | None = None,
) -> Result:
    """Computes how far keypoints or the corners of boxes jump from frame to frame.

    The other arguments are those of `mask_flicker`.

    Args:
        predict: a function to points `(N, K, 2)`, as (x, y), or boxes `(N, K, 4)`, as (x1, y1, x2,
            y2), in pixels, the same ones in each frame; NaN: not found.

    Returns:
        `jitter`, the mean distance in pixels of a point from where it was in the frame before,
        `jitter_per_second`, and `missing`, the percentage of pairs in which it is not found.

    Raises:
        InputError: as `mask_flicker`, other points in other frames, or none found in two
            successive frames.

    Examples:
        >>> frames = np.zeros((3, 8, 8, 3), np.uint8)
        >>> frames[[0, 1, 2], 4, [2, 3, 2]] = 255
        >>> def brightest(x):
        ...     place = x.sum(-1).reshape(len(x), -1).argmax(1)
        ...     return jax.numpy.stack([place % 8, place // 8], -1)[:, None]
        >>> point_flicker(brightest, frames, fps=25)["jitter_per_second"]
        25.0
    """
    clip = _Clip.checked(frames, fps, motion)
    points = [*clip.outputs(points_of, predict, batch_size, jit)]
    if len({p.shape for p in points}) > 1:
        raise InputError(
            "the function returns different numbers of points for different frames; give the same "
            "points each time, and NaN for one that is not found"
        )
    jumps = np.linalg.norm(np.diff(points, axis=0) - clip.motion[::-1], axis=-1)
    if np.isnan(jumps).all():
        raise InputError(
            "the function finds no point in two successive frames (NaN: not found), so its jitter "
            "is undefined"
        )
    missing = 100 * float(np.isnan(jumps).mean())
    return clip.rates("jitter", float(np.nanmean(jumps))) | {"missing": missing}


class _Clip(NamedTuple):
    frames: Float[np.ndarray, "n H H 3"]
    fps: float
    motion: tuple[int, int]

    @classmethod
    def checked(cls, frames: np.ndarray, fps: float, motion: tuple[int, int]) -> "_Clip":
        frames = np.asarray(frames)
        if frames.ndim != 4 or len(frames) < 2 or frames.shape[1] != frames.shape[2]:
            raise InputError(
                "frames must be an array (n, H, H, 3) of two or more square frames, got one of "
                f"shape {frames.shape}"
            )
        if np.shape(motion) != (2,):
            raise InputError(
                f"motion must be two numbers of pixels, down and right, got {motion!r}"
            )
        side = frames.shape[1]
        down, right = (integer("motion", m, least=1 - side) for m in motion)
        if max(down, right) >= side:
            raise InputError(
                f"motion must be less than the {side} pixels of the frames, got {motion}"
            )
        if not (rate := real("fps", fps, least=0)):
            raise InputError("fps is the number of frames a second, more than 0; got 0")
        return cls(frames, rate, (down, right))

    def outputs(
        self, read: Read, predict: Any, batch_size: int, jit: bool | None
    ) -> Iterator[np.ndarray]:
        """Yields the function's output for each frame."""
        predictor = predictor_of(predict, jit=jit, crop_size=self.frames.shape[1])
        for batch in image_batches(self.frames, batch_size):
            yield from np.asarray(read(predictor, batch["image"]))[batch["mask"]]

    def common(self, outputs: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the parts of successive maps that show the same content."""
        down, right = self.motion
        for before, after in pairwise(outputs):
            yield before[_from(-down), _from(-right)], after[_from(down), _from(right)]

    def rates(self, name: str, mean: float, unit: float = 1) -> Result:
        """Returns a mean from frame to frame, in its unit, and the same a second."""
        facts = {"num_frames": len(self.frames), "fps": self.fps}
        return {**facts, name: unit * mean, f"{name}_per_second": mean * self.fps}


def _from(shift: int) -> slice:
    return slice(max(shift, 0), min(shift, 0) or None)


class ClipOfMaps(Measure):
    """A measure of a function's outputs for the centre crops of a clip's frames, without motion."""

    brings_images = True
    of_maps = True
    flicker: ClassVar[Callable[..., Result]]  # `mask_flicker` or another

    def clip(self, subject: Subject) -> Frames:
        return Frames(subject.options[self.name], subject.options["fps"])

    def settings(self, subject: Subject) -> Result:
        return self.clip(subject).described()

    def check(self, subject: Subject) -> None:
        check_one_process(self.name)
        check_clip(self.clip(subject), subject.settings)

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        clip, settings = self.clip(subject), subject.settings
        times: list[float | None] = []
        frames = np.stack([*centre_crops(clip, settings, times)])
        fps, batch_size = mean_fps(clip.seconds(times)), settings.batch(len(frames))
        found = type(self).flicker(subject.predictor, frames, fps=fps, batch_size=batch_size)
        return {**found, "lost": clip.log_lost(), **clip.differences(times)}


class MaskFlicker(ClipOfMaps):
    """Pixels whose label changes from frame to frame; see `mask_flicker`."""

    options = (PicturesOption("mask_flicker", "flicker of masks on a clip"), FPS)
    columns = (
        Column(
            "masks changed",
            ("changed",),
            note="pixels with another label than in the frame before, mean over the clip",
        ),
    )
    flicker = staticmethod(mask_flicker)

    def line(self, result: Result) -> str:
        return (
            f"{'mask flicker':12} {result['changed']:.2f} % of the pixels change from frame to "
            f"frame   ({result['num_frames']} frames, {result['fps']:g} a second)"
        )


class MapFlicker(ClipOfMaps):
    """Change of values from frame to frame; see `map_flicker`."""

    options = (PicturesOption("map_flicker", "flicker of maps or images on a clip"), FPS)
    columns = (
        Column(
            "change of maps",
            ("difference",),
            unit="",
            note="mean absolute difference of values from the frame before, in their unit",
        ),
    )
    flicker = staticmethod(map_flicker)

    def line(self, result: Result) -> str:
        return (
            f"{'map flicker':12} values change by {result['difference']:.3g} from frame to frame   "
            f"({result['num_frames']} frames, {result['fps']:g} a second)"
        )


class PointFlicker(ClipOfMaps):
    """Distance in pixels that points jump from frame to frame; see `point_flicker`."""

    options = (PicturesOption("point_flicker", "jitter of points or boxes on a clip"), FPS)
    columns = (
        Column(
            "jitter on a clip (px)",
            ("jitter",),
            unit="px",
            note="mean distance of points from where they were in the frame before, in pixels",
        ),
    )
    flicker = staticmethod(point_flicker)

    def line(self, result: Result) -> str:
        return (
            f"{'points':12} jitter {result['jitter']:.3f} pixels from frame to frame   "
            f"({result['num_frames']} frames, {result['fps']:g} a second, "
            f"{result['missing']:.2f} % not found)"
        )
