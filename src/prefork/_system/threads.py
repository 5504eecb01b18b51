"""Threads whose start no signal can cut in two.

`threading.Thread.start` waits until the new thread has said that it runs. A signal handler that
raises in there, as Ctrl-C does, can leave the lock of that conversation held: the new thread waits
for it for ever, and whoever started it believes that it works. Handlers run in the main thread
alone. So the main thread makes one call in C, for a thread that does nothing but start the other.
"""

from __future__ import annotations

import _thread
import itertools
import os
import threading
import time
from collections.abc import Callable

from prefork._system.condition import Condition

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
        self._body = body
        self._name = name
        self._starters: list[int] = []  # of one thread, once it was started
        self._owner = os.getpid()
        self._ident = 0
        self._thread: threading.Thread | None = None
        self._has_ended = False
        self._is_starter_over = False
        self.end = Condition()

    def start(self) -> None:
        """To be called once.

        Raises:
            RuntimeError: the interpreter is ending, or the system has no thread left.
        """
        # All in C: no handler comes between the thread and its number.
        self._starters.extend(itertools.starmap(_thread.start_new_thread, [(self._start, ())]))

    def _start(self) -> None:
        thread = _Thread(target=self._run, name=self._name, daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # there is none left but this
            self._thread = None
            self._run()
        finally:
            self._is_starter_over = True
            self.end.notify_all()

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            self._body()
        finally:
            self._ident = 0
            self._has_ended = True
            self.end.notify_all()

    @property
    def is_started(self) -> bool:
        return bool(self._starters)

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
        if not self.is_started or self.is_current or self._owner != os.getpid():
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self.end.wait(lambda: self._has_ended and self._is_starter_over, timeout):
            return False
        if (thread := self._thread) is not None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            thread.join(None if left is None else min(left, threading.TIMEOUT_MAX))
            return not thread.is_alive()
        return True
