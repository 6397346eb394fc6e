"""Frames in the order of time: a folder of images, a video, or arrays."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from aa_flax.data.digest import digest, file_digest
from aa_flax.data.folder_index import EXTENSIONS
from aa_flax.data.images import ImageError
from aa_flax.data.pictures import Given, Pictures
from aa_flax.data.video import read_frames, read_header
from aa_flax.errors import InputError, real
from aa_flax.runtime import log_line

DEFAULT_FPS = 25.0  # of frames that nothing is known of


class Clip:
    """Frames of one size in the order of time.

    Args:
        given: a folder of frames, in the natural order of their names (`frame2` before `frame10`);
            a video that PyAV reads; or `Given`.
        fps: frames a second; None: of a video by the times of its frames, of frames `DEFAULT_FPS`.

    Attributes:
        fps: frames a second; None: the video's frames have times of their own.
        fps_from: `--fps`, `times` or `default`.

    Raises:
        InputError: no such folder or file, one without frames, PyAV is not installed, frames of a
            video without times.
    """

    def __init__(self, given: Path | Given, fps: float | None = None):
        self._path = None if isinstance(given, Given) else given
        is_file = self._path is not None and self._path.is_file()
        self._video = self._path if is_file else None
        if self._video is not None and self._video.suffix.lower() in EXTENSIONS:
            raise InputError(
                f"--clip {self._video} is one image; give the folder of all frames, or a video"
            )
        self._header = None if self._video is None else read_header(self._video)
        self._frames = Pictures(given, "--clip", below=False) if self._video is None else None
        if self._frames is not None and len(self._frames) < 2:
            raise InputError(f"--clip {self.name}: one frame alone; flips need two or more")
        self.fps, self.fps_from = self._rate(fps)

    def _rate(self, fps: float | None) -> tuple[float | None, str]:
        if fps is not None:
            rate = real("--fps", fps, least=0)
            if not rate:
                raise InputError("--fps is the number of frames a second, more than 0")
            return rate, "--fps"
        if self._header is None:
            return DEFAULT_FPS, "default"
        if not self._header.is_timed:
            raise InputError(f"the frames of {self._video} have no times; give --fps")
        return None, "times"

    def seconds(self, own: Sequence[float | None]) -> Float[np.ndarray, " n"]:
        """When each frame is shown.

        Args:
            own: the times that iterating gave.

        Raises:
            InputError: a frame of a video that has no time after that of the frame before.
        """
        if self.fps is not None:
            return np.arange(len(own)) / self.fps
        times = np.array(own, np.float64)  # None becomes NaN
        odd = np.flatnonzero(~(np.diff(times) > 0))
        if len(odd):
            raise InputError(
                f"frame {odd[0] + 1} of {self._video} has no time after that of the frame before; "
                "give --fps"
            )
        return times

    def differences(self, own: Sequence[float | None]) -> dict[str, float | None]:
        """Tells where a video's header and its frames disagree, and returns it for the results.

        Args:
            own: the times that iterating gave.
        """
        header, times = self._header, [time for time in own if time is not None]
        if header is None or len(times) < 2:
            return {}
        fps = (len(times) - 1) / (times[-1] - times[0])
        missing = 0.0 if header.end is None else header.end - times[-1] - 1 / fps
        missing = missing if missing > 1.5 / fps else 0.0  # beyond what rounding explains
        if missing:
            log_line(
                f"{self._video} may be cut off: its frames end {missing:.2f} s before its header "
                "says they do"
            )
        if header.fps and abs(header.fps / fps - 1) * (len(times) - 1) > 1.5:
            log_line(
                f"the header of {self._video} says {header.fps:g} frames a second, the times of "
                f"its frames say {fps:g} on average"
            )
        return {"header_fps": header.fps, "seconds_missing": missing}

    @property
    def name(self) -> str:
        """The path, or how many frames were given."""
        return str(self._path or f"{len(self._frames or ())} frames")

    def described(self) -> dict[str, Any]:
        """Where it is and how fast, and a hash of its contents, for a record."""
        rate = {} if self.fps is None else {"fps": self.fps}
        said = {**rate, "fps_from": self.fps_from}
        if self._frames is not None:
            return self._frames.described() | said
        assert self._video is not None
        where = {"file_of_video": str(self._video.absolute())}
        return {**where, "digest": digest("video", file_digest(self._video)), **said}

    def check(self) -> None:
        """Raises an InputError for frames of different sizes, of those that are images."""
        if self._frames is not None:
            for i in range(len(self._frames)):
                try:
                    size = self._frames.size(i)
                except ImageError as error:
                    raise InputError(f"{error}; a clip needs all of its frames") from error
                self._check_size(i, self._frames.name(i), size, self._frames.size(0))

    def first_size(self) -> tuple[int, int]:
        """Width and height of its frames."""
        if self._frames is not None:
            return self._frames.size(0)
        assert self._header is not None
        return self._header.size

    def __iter__(self) -> Iterator[tuple[float | None, Image.Image]]:
        """The frames in mode RGB, one at a time, each with its own time in seconds or None.

        Raises:
            InputError: a frame that cannot be read, or of another size than the first.
        """
        first = self.first_size()
        for i, (name, time, image) in enumerate(self._named_frames()):
            self._check_size(i, name, image.size, first)
            yield time, image

    def _named_frames(self) -> Iterator[tuple[str, float | None, Image.Image]]:
        if self._frames is None:
            assert self._video is not None
            for i, (time, image) in enumerate(read_frames(self._video)):
                yield f"frame {i} of {self._video}", time, image
            return
        for i in range(len(self._frames)):
            try:
                yield self._frames.name(i), None, self._frames[i]["image"]
            except ImageError as error:
                raise InputError(f"{error}; a clip needs all of its frames") from error

    def _check_size(self, i: int, name: str, size: tuple[int, int], first: tuple[int, int]) -> None:
        if size != first:
            raise InputError(
                f"frames of different sizes: {name} (frame {i}) has {size[0]} x {size[1]} pixels, "
                f"the first one {first[0]} x {first[1]}; a clip has one size"
            )

    def tell_lost(self) -> dict[str, int]:
        """Tells what frames lose as RGB, and returns it for the results: see `given.lost`."""
        if self._frames is not None:
            return self._frames.tell_lost()
        if self._header is None or not self._header.rotation:
            return {}
        log_line("the video is to be turned when it is played, which is ignored")
        return {"orientation tag ignored": 1}
