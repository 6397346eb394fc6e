"""SIGTERM: a run saves where it stands and ends, to be continued."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

# BSD's EX_TEMPFAIL, "try again later": the run was told to stop, has saved, and can continue.
EXIT_CODE = 75


class Stopped(Exception):
    """The run was told to stop and has saved; the message says where it stands."""


class Interrupted(BaseException):
    """What `interruptible` work ends with when the run is told to stop."""


class StopRequest:
    """Whether the run was told to stop (SIGTERM), asked after every step. A context manager.

    Several processes stop after the same step, even if one alone was told: `jax.distributed`
    listens for the signal and agrees on it.
    """

    def __init__(self):
        self._received = False
        self._interruptible = False
        self._before = None

    def __enter__(self):
        in_main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main_thread:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _receive(self, _signal: int, _frame: FrameType | None) -> None:
        self._received = True
        print("told to stop (SIGTERM): saving first", file=sys.stderr, flush=True)
        if self._interruptible:
            self._interruptible = False
            raise Interrupted

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; every process asks after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work that can be done again, such as evaluation: a request ends it with `Interrupted`."""
        self._interruptible = True
        try:
            if self._received:
                raise Interrupted
            yield
        finally:
            self._interruptible = False
