"""Clips: frames in the order of time, of a folder, a video (by PyAV) or arrays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from aa_flax.data.cache import digest, file_digest
from aa_flax.data.folder import EXTENSIONS
from aa_flax.data.pixels import ImageError
from aa_flax.data.unlabelled import Given, Pictures
from aa_flax.errors import InputError, cause, real
from aa_flax.runtime import log_line

DEFAULT_FPS = 25.0  # of frames without times


class Clip:
    """Frames of one size in the order of time.

    Args:
        given: a folder of frames, in the natural order of their names (`frame2` before `frame10`);
            a video that PyAV reads; or `Given`.
        fps: frames a second; None: of a video by the times of its frames, of frames `DEFAULT_FPS`.

    Attributes:
        fps: frames a second; None: the video's frames have times.
        fps_from: `--fps`, `times` or `default`.
        name: the path, or the number of frames given.

    """

    def __init__(self, given: Path | Given, fps: float | None = None):
        if isinstance(given, Path) and given.is_file():
            if given.suffix.lower() in EXTENSIONS:
                raise InputError(
                    f"--clip {given} is one image; give the folder of all frames, or a video"
                )
            self.name, self._frames = str(given), _Video(given)
            self._header = self._frames.header
        else:
            self._frames, self._header = Pictures(given, "--clip", below=False), None
            self.name = f"{len(self._frames)} frames" if isinstance(given, Given) else str(given)
            if len(self._frames) < 2:
                raise InputError(f"--clip {self.name}: only one frame; flips need two or more")
        self.fps, self.fps_from = self._rate(fps)

    def _rate(self, fps: float | None) -> tuple[float | None, str]:
        if fps is not None:
            if not (rate := real("--fps", fps, least=0)):
                raise InputError("--fps is the number of frames a second, more than 0")
            return rate, "--fps"
        if self._header is None:
            return DEFAULT_FPS, "default"
        if not self._header.is_timed:
            raise InputError(f"the frames of {self.name} have no times; give --fps")
        return None, "times"

    def seconds(self, times: Sequence[float | None]) -> Float[np.ndarray, " n"]:
        """Returns the time at which each frame is shown; `times` are as iterating yields them."""
        if self.fps is not None:
            return np.arange(len(times)) / self.fps
        found = np.array(times, np.float64)  # None becomes NaN
        odd = np.flatnonzero(~(np.diff(found) > 0))
        if odd.size:
            raise InputError(
                f"frame {odd[0] + 1} of {self.name} has no time after that of the frame before; "
                "give --fps"
            )
        return found

    def differences(self, times: Sequence[float | None]) -> dict[str, float | None]:
        """Logs and returns, for the results, where a video's header and its frames disagree."""
        header, known = self._header, [time for time in times if time is not None]
        if header is None or len(known) < 2:
            return {}
        fps = (len(known) - 1) / (known[-1] - known[0])
        missing = 0.0 if header.end is None else header.end - known[-1] - 1 / fps
        missing = missing if missing > 1.5 / fps else 0.0  # beyond what rounding explains
        if missing:
            log_line(
                f"{self.name} may be cut off: its frames end {missing:.2f} s before its header "
                "says they do"
            )
        if header.fps and abs(header.fps / fps - 1) * (len(known) - 1) > 1.5:
            log_line(
                f"the header of {self.name} says {header.fps:g} frames a second, the times of "
                f"its frames say {fps:g} on average"
            )
        return {"header_fps": header.fps, "seconds_missing": missing}

    def described(self) -> dict[str, Any]:
        """Returns the path, a hash of the contents and the rate, for a record."""
        rate = {} if self.fps is None else {"fps": self.fps}
        return {**self._frames.described(), **rate, "fps_from": self.fps_from}

    def log_lost(self) -> dict[str, int]:
        """Logs and returns what frames lose as RGB: see `aa_flax.data.unlabelled.lost`."""
        return self._frames.log_lost()

    def first_size(self) -> tuple[int, int]:
        """Returns width and height of the first frame."""
        return self._frames.size(0)

    def check(self) -> None:
        """Raises an InputError if images differ in size; those of a video are checked as read."""
        if isinstance(self._frames, Pictures):
            with _all_needed():
                first = self.first_size()
                for i in range(len(self._frames)):
                    self._check_size(i, self._frames.size(i), first)

    def __iter__(self) -> Iterator[tuple[float | None, Image.Image]]:
        """Yields the frames in mode RGB, each with its time in seconds, or None without one."""
        frames, first = self._frames, self.first_size()
        if isinstance(frames, _Video):
            timed = read_frames(frames.path)
        else:
            timed = ((None, frames[i]["image"]) for i in range(len(frames)))
        with _all_needed():
            for i, (time, image) in enumerate(timed):
                self._check_size(i, image.size, first)
                yield time, image

    def _check_size(self, i: int, size: tuple[int, int], first: tuple[int, int]) -> None:
        if size != first:
            raise InputError(
                f"frames of different sizes: {self._frames.name(i)} (frame {i}) has {size[0]} x "
                f"{size[1]} pixels, the first one {first[0]} x {first[1]}; a clip has one size"
            )


@contextmanager
def _all_needed() -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise InputError(f"{error}; a clip needs all of its frames") from error


class _Video:
    """A video, with the methods of `Pictures` that a clip needs."""

    def __init__(self, path: Path):
        self.path, self.header = path, read_header(path)

    def name(self, index: int) -> str:
        return f"frame {index} of {self.path}"

    def size(self, index: int) -> tuple[int, int]:
        return self.header.size

    def described(self) -> dict[str, Any]:
        file = {"file_of_video": str(self.path.absolute())}
        return {**file, "digest": digest("video", file_digest(self.path))}

    def log_lost(self) -> dict[str, int]:
        if not self.header.rotation:
            return {}
        log_line("the video has a rotation for playing it, which is ignored")
        return {"orientation tag ignored": 1}


class Header(NamedTuple):
    """The header of a video."""

    fps: float | None  # frames a second, on average; None: unknown
    end: float | None  # when its last frame ends, in seconds; None: unknown
    is_timed: bool  # its first frame has a time
    size: tuple[int, int]  # width and height
    rotation: float  # degrees by which a player would rotate the frames


def read_header(path: Path) -> Header:
    """Reads frame rate, length, size and rotation of a video, which must have its end."""
    container, stream = _open(path)
    with container:
        if container.format.name == "gif" and not path.read_bytes().endswith(b";"):
            raise InputError(f"{path} was cut off: its end is missing; give a whole file")
        rate = stream.average_rate or stream.guessed_rate
        first = next(_decoded(container, stream, path), None)
        if first is None:
            raise InputError(f"{path} contains no frames")
        return Header(
            fps=float(rate) if rate else None,
            end=_end(container, stream),
            is_timed=first.time is not None,
            size=(first.width, first.height),
            rotation=float(getattr(first, "rotation", 0) or 0),
        )


def _end(container: Any, stream: Any) -> float | None:
    """Returns when the last frame ends by the header, on the scale of the frames' times."""
    if container.format.name == "avi":  # FFmpeg derives its duration from the size of the file
        seconds = stream.frames / stream.average_rate if stream.average_rate else 0
        return float(seconds) or None
    if "DURATION" in stream.metadata:  # Matroska's tag of one stream; the container's is of all
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if stream.duration is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    return container.duration / 1e6 if container.duration is not None else None


def read_frames(path: Path) -> Iterator[tuple[float | None, Image.Image]]:
    """Yields the frames of a video in the order of time, in mode RGB and not rotated.

    Each comes with its time in seconds, or None without one.
    """
    container, stream = _open(path)
    with container:
        stream.thread_type = "AUTO"
        for frame in _decoded(container, stream, path):
            yield frame.time, frame.to_image()


def _open(path: Path) -> tuple[Any, Any]:
    """Returns the container and its video stream."""
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise InputError(
            "videos are read by PyAV: pip install 'aa_flax[video]'; or give a folder of frames"
        ) from error
    try:
        container = av.open(str(path))
    except (FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a video that PyAV reads: {cause(error)}") from error
    if not container.streams.video:
        container.close()
        raise InputError(f"{path} contains no video, only {len(container.streams)} other streams")
    return container, container.streams.video[0]


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    from av.error import FFmpegError

    def broken(reason: str) -> InputError:
        return InputError(
            f"cannot read frame {count} of {path}: {reason}; a clip needs all of its frames"
        )

    count = 0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:  # FFmpeg decodes as much of it as there is
                raise broken("it is damaged, or the file was cut off there")
            yield frame
            count += 1
    except FFmpegError as error:
        raise broken(cause(error)) from error
