"""Signals that ask a run to stop, or how it is, as events in its queue."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["ASKING", "STOPPING", "Interrupted", "Signals", "Stopped"]

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ASKING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGINFO") if hasattr(signal, name))
"""SIGINFO is Ctrl-T of a terminal, where there is one."""
AGAIN = 0.5
"""Seconds after which a signal has been sent again, not twice at once: timeout(1) sends it to the
process and to its group, a terminal that is closed comes with its shell's SIGHUP."""


class Interrupted(Exception):
    """Not an error: a signal ended the run; all that it should leave behind is written."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Stopped(Exception):
    """Not an error: a signal came while the main thread was waiting for somebody else."""


class Signals:
    """While entered, these signals are reported, not raised: nothing is interrupted half way.

    One of a kind that asks to stop, if it is sent again, ends the process at once: the kernel then
    ends its workers. They are heeded even if the process was started with them ignored, as the
    background jobs of a script are: there, they do not come from the keyboard, but from somebody
    who means it. Except for SIGHUP: who has it ignored (nohup) wants to outlive the terminal.

    Args:
        report: called with the signal's number, from the handler.
    """

    def __init__(self, report: Callable[[int], object]) -> None:
        self._report = report
        self._before: dict[int, Any] = {}
        self._since: dict[int, float] = {}  # by those that ask to stop, when the first one came
        self._waiting = False
        self.received: int | None = None

    def __enter__(self) -> Self:
        for signum in STOPPING:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._handle)
        for signum in ASKING:
            self._before[signum] = signal.signal(signum, self._tell)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum in self._since:
            if time.monotonic() - self._since[signum] > AGAIN:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        self._since[signum] = time.monotonic()
        self.received = signum
        self._report(signum)
        if self._waiting:
            raise Stopped

    def _tell(self, signum: int, frame: FrameType | None) -> None:
        self._report(signum)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A part of the main thread that may wait for ever: in it, a signal raises `Stopped`."""
        self._waiting = True
        try:
            # One that came earlier is in the queue, which the main thread is not looking at now.
            if self.received is not None:
                raise Stopped
            yield
        finally:
            self._waiting = False
