"""Threads wait here for what other threads do."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Condition"]


class Condition:
    """Lets threads wait until something is true that other threads make true.

    `notify_all` is safe to call from anywhere, a finalizer included: it takes no lock. Both methods
    may be interrupted by a signal handler that raises, at any point: nobody is forgotten.

    Who must not block, such as a task of an event loop, listens instead of waiting: it looks at its
    predicate when it has begun to listen, and again whenever it is called.
    """

    __slots__ = ("_listeners", "_waiters")

    def __init__(self) -> None:
        self._waiters: deque[threading.Lock] = deque()
        self._listeners: dict[Callable[[], object], None] = {}

    def wait(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `predicate()`, at most `timeout` seconds; returns what it is then."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not predicate():
            lock = threading.Lock()
            lock.acquire()
            self._waiters.append(lock)
            # Looked at again after joining the queue: whoever makes it true does so before
            # it notifies, so one of the two sees the other.
            if predicate():
                return True  # (the lock stays behind, to be released with the others)
            left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            if not lock.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                self._forget(lock)
                if left == 0.0:
                    return predicate()
        return True

    def notify_all(self) -> None:
        """Have all who wait or listen look at their predicates again."""
        self.wake_threads()
        if self._listeners:
            for listener in list(self._listeners):
                listener()

    def wake_threads(self) -> None:
        """Have the waiting threads look at their predicates again; not those who listen."""
        waiters = self._waiters
        while waiters:
            try:
                lock = waiters[0]
            except IndexError:  # another thread has woken the last one
                return
            # Released first, and taken out then: an interrupt in between leaves a lock that is
            # released once more the next time.
            try:  # noqa: SIM105  # suppress() takes three calls, and each result is told so
                lock.release()
            except RuntimeError:
                pass  # another thread has released it
            self._forget(lock)

    def listen(self, listener: Callable[[], object]) -> None:
        """Have this called by each `notify_all`, in whichever thread that is called; so it must
        neither wait nor raise."""
        self._listeners[listener] = None

    def listen_no_more(self, listener: Callable[[], object]) -> None:
        self._listeners.pop(listener, None)

    def has_waiters(self) -> bool:
        """Whether anybody waits or listens."""
        return bool(self._waiters or self._listeners)

    def _forget(self, lock: threading.Lock) -> None:
        try:  # noqa: SIM105  # likewise
            self._waiters.remove(lock)
        except ValueError:
            pass  # another thread was here
