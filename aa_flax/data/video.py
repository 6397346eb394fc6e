"""Frames of a video, by PyAV (the extra `video`), which is imported only when one is opened."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from aa_flax.errors import InputError


class Header(NamedTuple):
    """What a video says of itself.

    Attributes:
        fps: frames a second, on average; None: it does not say.
        end: when its last frame ends, in seconds; None: it does not say.
        is_timed: whether its first frame has a time.
        size: width and height of its frames.
        rotation: degrees by which a player would turn the frames.
    """

    fps: float | None
    end: float | None
    is_timed: bool
    size: tuple[int, int]
    rotation: float


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(
            "videos are read by PyAV: pip install 'aa_flax[video]'; or give a folder of frames"
        ) from error
    return av


def _open(path: Path) -> tuple[Any, Any]:
    """The container and its video stream."""
    av = _pyav()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path} is no video that PyAV reads: {_said(error)}") from error
    if not container.streams.video:
        container.close()
        raise InputError(f"{path} holds no video, only {len(container.streams)} other streams")
    return container, container.streams.video[0]


def read_header(path: Path) -> Header:
    """The frame rate, the length, the size and the rotation of a video.

    Raises:
        InputError: PyAV is not installed, or the file is no video or has no end.
    """
    container, stream = _open(path)
    with container:
        if container.format.name == "gif" and not path.read_bytes().endswith(b";"):
            raise InputError(f"{path} was cut off: its end is missing; give a whole file")
        rate = stream.average_rate or stream.guessed_rate
        first = next(_decoded(container, stream, path), None)
        if first is None:
            raise InputError(f"{path} holds no frames")
        return Header(
            fps=float(rate) if rate else None,
            end=_end(container, stream),
            is_timed=first.time is not None,
            size=(first.width, first.height),
            rotation=float(getattr(first, "rotation", 0) or 0),
        )


def _end(container: Any, stream: Any) -> float | None:
    """When the last frame ends by the header, on the scale of the frames' own times."""
    if container.format.name == "avi":  # whose duration FFmpeg takes from the file that is there
        seconds = stream.frames / stream.average_rate if stream.average_rate else 0
        return float(seconds) or None
    if "DURATION" in stream.metadata:  # Matroska's tag of one stream; the container's is of all
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if stream.duration is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    return container.duration / 1e6 if container.duration is not None else None


def read_frames(path: Path) -> Iterator[tuple[float | None, Image.Image]]:
    """The frames of a video in the order of time, in mode RGB; not turned as its header may ask.

    With each comes its own time in seconds, or None where it has none.

    Raises:
        InputError: PyAV is not installed, the file is no video, or a frame is broken.
    """
    container, stream = _open(path)
    with container:
        stream.thread_type = "AUTO"
        for frame in _decoded(container, stream, path):
            yield frame.time, frame.to_image()


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    errors = _pyav().error.FFmpegError
    count = 0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:  # decoded all the same, from what there is of it
                raise _broken(count, path, "it is damaged, or the file was cut off there")
            yield frame
            count += 1
    except errors as error:
        raise _broken(count, path, _said(error)) from error


def _broken(count: int, path: Path, reason: str) -> InputError:
    return InputError(
        f"cannot read frame {count} of {path}: {reason}; a clip needs all of its frames"
    )


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
