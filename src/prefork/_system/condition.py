"""Threads wait here for what other threads do."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Condition"]


class Condition:
    """Lets threads wait for a condition that other threads make true.

    `notify` is safe to call from anywhere, a finalizer included: it takes no lock.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: deque[threading.Lock] = deque()

    def wait(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition()`, at most `timeout` seconds; returns what it is then."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not condition():
            lock = threading.Lock()
            lock.acquire()
            self._waiters.append(lock)
            # Looked at again after joining the queue: whoever makes it true does so before
            # it notifies, so one of the two sees the other.
            if condition():
                return True  # (the lock stays behind, to be released with the others)
            left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            if not lock.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                with contextlib.suppress(ValueError):  # notified this very moment
                    self._waiters.remove(lock)
                if left == 0.0:
                    return condition()
        return True

    def notify_all(self) -> None:
        """Have the waiting threads look at their condition again."""
        waiters = self._waiters
        while waiters:
            try:
                waiters.popleft().release()
            except IndexError:  # another thread has woken the last one
                return
