"""SIGTERM and Ctrl-C: a run saves its state and ends, to be resumed."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# BSD's EX_TEMPFAIL, "try again later": the run has saved its state and can be resumed.
EXIT_CODE = 75


class Stopped(Exception):
    """The run was asked to stop and has saved; the message says after which step."""


class Interrupted(BaseException):
    """Ends `interruptible` work on a request to stop."""


class StopRequest:
    """Handles SIGTERM and Ctrl-C as requests to stop the run.

    A context manager. A request ends the work in it with `Stopped`, except in
    `interruptible(False)`, where the run checks `reached` after every step. A second Ctrl-C ends
    the process at once. Several processes stop after the same step, even if only one got the
    signal: `jax.distributed` listens for SIGTERM and agrees on a step.
    """

    def __init__(self):
        self._received = False
        self._interruptible = True
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # ignored under a shell's `&`
                self._listen(signal.SIGINT)
            if jax.process_count() == 1:
                self._listen(signal.SIGTERM)
        return self

    def _listen(self, number: int) -> None:
        self._before[number] = signal.signal(number, self._receive)

    def __exit__(self, error_type, *_):
        for number, before in self._before.items():
            signal.signal(number, before)
        if error_type is Interrupted:
            raise Stopped("stopped; the same command continues") from None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self._received = not self._received, True
        again = ", again to stop at once" if number == signal.SIGINT else ""
        name = signal.Signals(number).name
        print(f"asked to stop ({name}): saving first{again}", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # jax.distributed passes it on
        elif first and self._interruptible:
            raise Interrupted

    def reached(self, step: int) -> bool:
        """Checks if the run is to stop after this step; every process calls it after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    @contextmanager
    def interruptible(self, within: bool = True) -> Iterator[None]:
        """Runs work that can be repeated, e.g. evaluation: a request ends it with `Interrupted`.

        `within=False` is for work that no request ends, since it checks `reached` itself.
        """
        before, self._interruptible = self._interruptible, within
        try:
            if within and self._received and jax.process_count() == 1:
                raise Interrupted
            yield
        finally:
            self._interruptible = before
