"""Whose start is still to be told: policy without I/O; the time is an argument.

A worker can report each start (`ACCEPT`), or leave it at the note on its board. Then the pool
looks there a moment after a job may have started. Most short tasks are done by then, and their
result says when they started: one message and one wake-up less for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prefork.scheduler import Job, Seat

__all__ = ["Starts"]

LONGEST_PAUSE: Final = 0.5
"""Seconds between two looks at a worker that does not start its job: one that was stopped."""


class Starts:
    """
    Args:
        delay: how many seconds after its start a job is told of at the latest; None: workers
            report the start of each job that wants to be told of.
    """

    def __init__(self, delay: float | None = None) -> None:
        self.delay = delay
        self.next_look: float | None = None  # monotonic seconds; None: nothing can have started
        self._pause = 0.0

    def expect(self, seat: Seat, now: float) -> bool:
        """The first job of this seat may start now; True if that makes the next look earlier."""
        if self.delay is None or not seat.sent or not seat.ready:
            return False
        if self.next_look is not None and self.next_look <= now + self.delay:
            return False
        if not next(iter(seat.sent.values())).untold:
            return False
        self._pause = self.delay
        self.next_look = now + self.delay
        return True

    def look(self, seats: Iterable[Seat], now: float) -> list[tuple[Seat, Job]]:
        """The jobs that have started and are to be told of; sets `next_look`."""
        started = []
        self.next_look = None
        for seat in seats:
            if not seat.sent:
                continue
            job = seat.sent.get(seat.running()[0])
            if job is not None and job.untold:
                started.append((seat, job))
            elif job is None and seat.ready and next(iter(seat.sent.values())).untold:
                self.next_look = now + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        return started
