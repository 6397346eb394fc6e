"""SIGTERM and Ctrl-C: a run saves where it stands and ends, to be continued."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# BSD's EX_TEMPFAIL, "try again later": the run was told to stop, has saved, and can continue.
EXIT_CODE = 75


class Stopped(Exception):
    """The run was told to stop and has saved; the message says where it stands."""


class Interrupted(BaseException):
    """What `interruptible` work ends with when the run is told to stop."""


class StopRequest:
    """Whether the run was told to stop, by SIGTERM or Ctrl-C, asked after every step.

    A context manager. A second Ctrl-C ends the process at once. Several processes stop after the
    same step, even if one alone was told: `jax.distributed` listens for SIGTERM and agrees on it.
    """

    def __init__(self):
        self._received = False
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell's `&` sets it
                self._listen(signal.SIGINT)
            if jax.process_count() == 1:
                self._listen(signal.SIGTERM)
        return self

    def _listen(self, number: int) -> None:
        self._before[number] = signal.signal(number, self._receive)

    def __exit__(self, *_):
        for number, before in self._before.items():
            signal.signal(number, before)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = True
        again = ", again to stop at once" if number == signal.SIGINT else ""
        name = signal.Signals(number).name
        print(f"told to stop ({name}): saving first{again}", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # which jax.distributed tells the others
        elif self._interruptible:
            self._interruptible = False
            raise Interrupted

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; every process asks after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work that can be done again, such as evaluation: a request ends it with `Interrupted`.

        Raises:
            Interrupted: there was a request, before or within.
        """
        self._interruptible = True
        try:
            if self._received and jax.process_count() == 1:
                raise Interrupted
            yield
        finally:
            self._interruptible = False


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Processes started in here do not get the terminal's Ctrl-C, which goes to all of a command's.

    This process gets it at the end.
    """
    resource_tracker.ensure_running()  # starting it later would let Ctrl-C through again (CPython)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
