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
        size: width and height of its frames.
        rotation: degrees by which a player would turn the frames.
    """

    fps: float | None
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
    """The frame rate, the size and the rotation of a video.

    Raises:
        InputError: PyAV is not installed, or the file is no video.
    """
    container, stream = _open(path)
    with container:
        rate = stream.average_rate or stream.guessed_rate
        first = next(_decoded(container, stream, path), None)
        if first is None:
            raise InputError(f"{path} holds no frames")
        rotation = float(getattr(first, "rotation", 0) or 0)
        return Header(float(rate) if rate else None, (first.width, first.height), rotation)


def read_frames(path: Path) -> Iterator[Image.Image]:
    """The frames of a video in the order of time, in mode RGB; not turned as its header may ask.

    Raises:
        InputError: PyAV is not installed, the file is no video, or a frame is broken.
    """
    container, stream = _open(path)
    with container:
        stream.thread_type = "AUTO"
        for frame in _decoded(container, stream, path):
            yield frame.to_image()


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    errors = _pyav().error.FFmpegError
    count = 0
    try:
        for frame in container.decode(stream):
            yield frame
            count += 1
    except errors as error:
        raise InputError(
            f"cannot read frame {count} of {path}: {_said(error)}; a clip needs all of its frames"
        ) from error


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
