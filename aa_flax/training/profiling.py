"""A JAX profile of a few steps of a run, for TensorBoard, XProf or Perfetto."""

from pathlib import Path
from typing import Any

import jax

from aa_flax.runtime import log_line

_FIRST, _STEPS = 5, 5  # after compilation and the first fetches of data


class Profile:
    """Traces steps 6 to 10 of this start of the run.

    Args:
        folder: where the trace goes; None: no profile.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._steps = 0
        self._running = self._written = False

    def before_step(self, state: Any) -> None:
        """To be called before each step, with the state it starts from."""
        if self._folder is None:
            return
        if self._steps == _FIRST:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._steps == _FIRST + _STEPS:
            jax.block_until_ready(state)
            self.stop()
        self._steps += 1

    def stop(self) -> None:
        """Ends the trace; says so where none could be made."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._written = True
            log_line(f"profile written to {self._folder}")
        elif self._folder is not None and not self._written:
            log_line(f"no profile: it begins after {_FIRST} steps, this start had {self._steps}")
