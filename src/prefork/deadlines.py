"""What expires when: policy without I/O; the time is an argument.

A limit counts from the moment that the worker starts the task, which the worker notes on its
board. Nobody is told of that moment: a task that was sent at `t` cannot expire before `t` plus its
limit, so that is when to look. What has not started then cannot expire before a whole limit later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from prefork.scheduler import Job, Seat

__all__ = ["Deadlines", "Expiry"]


class Expiry(NamedTuple):
    seat: Seat
    job: Job
    soft: bool
    timeout: float  # the limit that has passed, seconds
    started: float  # of the job, or of the chunk's item, that has passed it (monotonic)


class Deadlines:
    def __init__(self) -> None:
        self.next_look: float | None = None  # monotonic seconds; None: nothing can expire
        self._interrupted: dict[Seat, tuple[int, float]] = {}  # job and start: soft limit is done

    def watch(self, job: Job, now: float) -> bool:
        """A job was sent; True if the next look is now earlier than before."""
        limit = _first_limit(job)
        if limit is None or (self.next_look is not None and self.next_look <= now + limit):
            return False
        self.next_look = now + limit
        return True

    def look(self, seats: Iterable[Seat], now: float) -> list[Expiry]:
        """What has expired; sets `next_look`."""
        expired: list[Expiry] = []
        looks: list[float] = []
        for seat in seats:
            if not seat.sent:
                continue
            running, started = seat.running()
            for job in seat.sent.values():
                if job.id == running:
                    self._look_at(seat, job, started, now, expired, looks)
                elif (limit := _first_limit(job)) is not None:
                    looks.append(now + limit)
        self.next_look = min(looks, default=None)
        return expired

    def _look_at(
        self,
        seat: Seat,
        job: Job,
        started: float,
        now: float,
        expired: list[Expiry],
        looks: list[float],
    ) -> None:
        if job.timeout:
            if now >= started + job.timeout:
                expired.append(Expiry(seat, job, False, job.timeout, started))
                return
            looks.append(started + job.timeout)
        if job.soft_timeout and self._interrupted.get(seat) != (job.id, started):
            if now >= started + job.soft_timeout:
                self._interrupted[seat] = job.id, started
                expired.append(Expiry(seat, job, True, job.soft_timeout, started))
            else:
                looks.append(started + job.soft_timeout)
        if job.size > 1 and (limit := _first_limit(job)) is not None:
            looks.append(now + limit)  # for the chunk's next item

    def forget(self, seat: Seat) -> None:
        self._interrupted.pop(seat, None)


def _first_limit(job: Job) -> float | None:
    return min(filter(None, (job.timeout, job.soft_timeout)), default=None)
