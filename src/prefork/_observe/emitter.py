"""Passes on what workers have sent, on a thread of its own: what it calls is the user's, and may be
slow, raise, block for ever, or use the pool.

Nobody waits for it while the pool runs. What it has not got round to is held, up to so many bytes;
what comes then is dropped and counted, and the pool's log tells how much that was.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from prefork._system.condition import Condition
from prefork._system.log import ERROR, WARNING, Log
from prefork._system.threads import BackgroundThread

__all__ = ["Emitter"]

MOST_BYTES: Final = 1 << 24
OVERHEAD: Final = 200
"""Bytes that each message takes beside its own."""

STUCK_SECONDS: Final = 5.0
"""At the end it is waited for as long as it gets on; so long for one single message."""

Call = Callable[[], object]


class Emitter:
    """
    Args:
        log: where it is noted what is dropped, and what is raised.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._queue: deque[tuple[Call, int]] = deque()
        # Each is written by one thread only, so that neither needs a lock.
        self._bytes_put = self._bytes_taken = 0
        self._dropped = self._dropped_told = 0
        self._passed = 0  # messages
        self._has_raised = False
        self._is_closed = False
        self._is_waiting = False
        self._news = Condition()
        self._thread = BackgroundThread(self._run, "prefork-Emitter")

    # ---- for the one thread that receives

    def put(self, call: Call, size: int) -> None:
        """Have this called soon, after what came before; `size`: bytes that it holds."""
        if self._bytes_put - self._bytes_taken > MOST_BYTES:
            self._dropped += 1
            return
        size += OVERHEAD
        self._bytes_put += size
        self._queue.append((call, size))

    def wake(self) -> None:
        """Something was put."""
        if not self._thread.is_started:
            try:
                self._thread.start()
            except RuntimeError:  # no thread is left now; the next time, perhaps
                return
        if self._is_waiting:
            self._news.notify_all()

    def close(self) -> None:
        """Nothing more will be put: the thread ends when all is passed on."""
        self._is_closed = True
        if self._queue or self._thread.is_started:
            self.wake()
        self._news.notify_all()

    # ---- its own thread

    def _run(self) -> None:
        while True:
            try:
                call, size = self._queue.popleft()
            except IndexError:
                self._tell_dropped()
                if self._is_closed:
                    return
                self._is_waiting = True  # before the look: who puts after it, sees it
                self._news.wait(self._has_news)
                self._is_waiting = False
                continue
            try:
                call()
            except BaseException as exc:
                self._complain(exc)
            self._passed += 1
            self._bytes_taken += size
            del call

    def _has_news(self) -> bool:
        return bool(self._queue) or self._is_closed

    def _tell_dropped(self) -> None:
        dropped = self._dropped - self._dropped_told
        if dropped:
            self._dropped_told += dropped
            text = "%d log records or lines of workers were dropped: what takes them is too slow"
            self._log.note(WARNING, text, dropped)

    def _complain(self, error: BaseException) -> None:
        """Once: it may raise for each of a million lines."""
        if not self._has_raised:
            self._has_raised = True
            text = "what takes log records or lines of workers raised (this is told only once)"
            self._log.note(ERROR, text, error=error)

    # ---- the end

    def is_current(self) -> bool:
        """Whether its own thread asks."""
        return self._thread.is_current

    def flush(self, deadline: float | None) -> bool:
        """It is closed: wait until all is passed on, for as long as it gets on; whether it is."""
        while True:
            passed = self._passed
            left = STUCK_SECONDS
            if deadline is not None:
                left = min(left, max(0.0, deadline - time.monotonic()))
            if self._thread.join(left):
                self._run()  # what is left if no thread could be started, as at the very end
                return True
            if self._passed == passed:
                return False
