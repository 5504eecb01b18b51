"""Takes what happens, from any thread, and has it accounted for later, by whoever has the time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from prefork._report.account import Account, Memory, Run
from prefork._report.failures import Failure
from prefork._system.condition import Condition
from prefork._system.locks import RLock
from prefork._system.threads import BackgroundThread

__all__ = ["MemoryWatch", "Recorder"]

T = TypeVar("T")

BATCH = 64
"""So many are noted before they are accounted for, which costs more than to note them."""
END_SECONDS = 1.0
PAUSE = 0.1  # seconds between two looks at the memory of processes
SHARE = 100  # of these pauses, in lengths of a look


class Recorder:
    def __init__(self, account: Account) -> None:
        self._account = account
        self._events: deque[Run | Failure | Memory] = deque()
        self._lock = RLock()
        self._is_folding = False
        # Takes no lock and never waits: it may be called with the pool's lock held, and by a signal
        # handler that has interrupted `fold`.
        self.note = self._events.append

    def fold_many(self) -> None:
        """Account for what was noted, if that is much."""
        if len(self._events) >= BATCH:
            self.fold()

    def fold(self) -> None:
        """Account for what was noted. No user's code is called."""
        with self._lock:
            if self._is_folding:  # further up the stack, which a signal handler has interrupted
                return
            try:
                self._is_folding = True
                self._fold_all()
            finally:
                self._is_folding = False

    def _fold_all(self) -> None:
        account, events = self._account, self._events
        now = time.monotonic()
        while events:
            event = events.popleft()
            if type(event) is Run:
                account.add(event, now)
            elif type(event) is Failure:
                account.add_failure(event, now)
            elif type(event) is Memory:
                account.add_memory(event, now)

    def read(self, look: Callable[[Account], T]) -> T:
        """What this returns, of an account that does not change meanwhile."""
        with self._lock:
            self.fold()
            return look(self._account)


class MemoryWatch:
    """A thread that looks at the memory of processes, ten times a second, or less often if that
    took more than a hundredth of the time.

    Args:
        look: tells process ids and what they have resident, KiB; None: there will be nothing any
            more.
    """

    def __init__(
        self, recorder: Recorder, look: Callable[[], Iterable[tuple[int, int]] | None]
    ) -> None:
        self._recorder = recorder
        self._look = look
        self._is_over = False
        self._over = Condition()
        self._thread = BackgroundThread(self._run, "prefork-MemoryWatch")

    def start(self) -> None:
        """
        Raises:
            RuntimeError: the system has no thread left.
        """
        self._thread.start()

    def cancel(self) -> None:
        """It ends soon; this does not wait for that."""
        self._is_over = True
        self._over.notify_all()

    def stop(self) -> None:
        """The same, and wait for its end, for a moment: whoever calls this may have interrupted who
        holds what it waits for."""
        self.cancel()
        self._thread.join(END_SECONDS)

    def _run(self) -> None:
        before = time.monotonic()
        pause = 0.0
        while not self._over.wait(lambda: self._is_over, pause):
            now = time.monotonic()
            if (found := self._look()) is None:
                return
            for pid, kib in found:
                self._recorder.note(Memory(pid, before, now, kib))
            before = now
            pause = max(PAUSE, SHARE * (time.monotonic() - now))
            self._recorder.fold()
