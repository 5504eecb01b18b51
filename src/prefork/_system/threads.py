"""Threads whose start no signal can cut in two.

`threading.Thread.start` waits until the new thread has said that it runs. A signal handler that
raises in there, as Ctrl-C does, can leave the lock of that conversation held: the new thread waits
for it for ever, and whoever started it believes that it works. So handlers wait for the start.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from prefork._system.condition import Condition
from prefork._system.uninterrupted import uninterrupted

__all__ = ["BackgroundThread", "is_own"]


class _Thread(threading.Thread):
    """One of the pool's own."""


def is_own(thread: threading.Thread) -> bool:
    """Whether it is a pool's, not the program's."""
    return isinstance(thread, _Thread)


class BackgroundThread:
    """A daemon thread that runs `body` once, from `start` on.

    Its methods may be interrupted by a signal handler that raises, at any point.

    Attributes:
        end: notified when it has ended.
    """

    def __init__(self, body: Callable[[], object], name: str) -> None:
        self._body: Callable[[], object] | None = body  # until it has ended
        self._name = name
        self._owner = os.getpid()
        self._ident = 0
        self._thread: threading.Thread | None = None  # once it is being started
        self._has_ended = False
        self.end = Condition()

    def start(self) -> None:
        """To be called once.

        Raises:
            RuntimeError: the interpreter is ending, or the system has no thread left.
        """
        uninterrupted(self._start)

    def _start(self) -> None:
        # It may look at `is_started` before this goes on.
        self._thread = _Thread(target=self._run, name=self._name, daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            assert self._body is not None
            self._body()
        finally:
            # What it did the work for often holds this object, too. When both are done with, they
            # go at once, with the pool that they hold, and do not wait for the garbage collector.
            self._body = None
            self._ident = 0
            self._has_ended = True
            self.end.notify_all()

    @property
    def is_started(self) -> bool:
        return self._thread is not None

    @property
    def is_running(self) -> bool:
        """Whether it was started, by this very process, and has not ended."""
        return self.is_started and not self._has_ended and self._owner == os.getpid()

    @property
    def is_current(self) -> bool:
        """Whether this thread is what asks."""
        return self._ident == threading.get_ident()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most so many seconds; whether it has, or was never started.

        No thread is left then, so that the interpreter can end: one that comes back while it does
        is ended by the system, which takes a descriptor, and aborts the process if there is none.

        A thread that calls this on itself returns at once.
        """
        thread = self._thread
        if thread is None or self.is_current or self._owner != os.getpid():
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self.end.wait(lambda: self._has_ended, timeout):
            return False
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        thread.join(None if left is None else min(left, threading.TIMEOUT_MAX))
        return not thread.is_alive()
