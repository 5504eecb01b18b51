"""What expires when: policy without I/O; the time is an argument.

A limit counts from the moment that the worker starts the task, which the worker notes on its
board. Nobody is told of that moment: a task that was sent at `t` cannot expire before `t` plus its
limit, so that is when to look. What has not started then cannot expire before a whole limit later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from prefork._policy.job import Job, WorkerSlot

__all__ = ["MEMORY_SECONDS", "Deadlines", "Expiry", "Findings", "StartNotices"]

UNREAD_SECONDS: Final = 2.0
"""A job that its idle worker has not read by so long after its limit was sent to a process that
does not run: one that was stopped, for instance."""
MEMORY_SECONDS: Final = 0.1
"""How often the memory of busy workers is measured, if it is limited while they run."""


class Expiry(NamedTuple):
    slot: WorkerSlot
    job: Job
    soft: bool
    timeout: float  # the limit that has passed, seconds
    started: float  # of the job, or of the chunk's item, that has passed it (monotonic)


class Findings(NamedTuple):
    """What a look has shown."""

    expired: list[Expiry]
    unread: list[tuple[WorkerSlot, Job]]  # its worker does not even read it


class Deadlines:
    """
    Args:
        interval: look at least so often (seconds) while there is anything to look at; None: only
            when something can expire.
    """

    def __init__(self, interval: float | None = None) -> None:
        self.next_look: float | None = None  # monotonic seconds; None: nothing can expire
        self._interval = interval
        self._interrupted: dict[
            WorkerSlot, tuple[int, float]
        ] = {}  # job and start: soft limit is done

    def watch(self, job: Job, now: float) -> bool:
        """A job was sent; True if the next look is now earlier than before."""
        job.sent_at = now
        limit = _first_limit(job)
        if limit is None or (self._interval is not None and self._interval < limit):
            limit = self._interval
        if limit is None or (self.next_look is not None and self.next_look <= now + limit):
            return False
        self.next_look = now + limit
        return True

    def look(self, slots: Iterable[WorkerSlot], now: float) -> Findings:
        """What has expired; sets `next_look`."""
        findings = Findings([], [])
        looks: list[float] = []
        for slot in slots:
            if not slot.sent:
                continue
            running, started = slot.running()
            if running not in slot.sent and slot.ready:
                self._look_at_unread(slot, now, findings, looks)
            for job in slot.sent.values():
                if job.id == running:
                    self._look_at(slot, job, started, now, findings.expired, looks)
                elif (limit := _first_limit(job)) is not None:
                    looks.append(now + limit)
            if self._interval is not None:
                looks.append(now + self._interval)
        self.next_look = min(looks, default=None)
        return findings

    def _look_at_unread(
        self, slot: WorkerSlot, now: float, findings: Findings, looks: list[float]
    ) -> None:
        job = next(iter(slot.sent.values()))
        if (limit := _first_limit(job)) is None:
            return
        if now >= (latest := job.sent_at + limit + UNREAD_SECONDS):
            findings.unread.append((slot, job))
        else:
            looks.append(latest)

    def _look_at(
        self,
        slot: WorkerSlot,
        job: Job,
        started: float,
        now: float,
        expired: list[Expiry],
        looks: list[float],
    ) -> None:
        if job.timeout:
            if now >= started + job.timeout:
                expired.append(Expiry(slot, job, False, job.timeout, started))
                return
            looks.append(started + job.timeout)
        if job.soft_timeout and self._interrupted.get(slot) != (job.id, started):
            if now >= started + job.soft_timeout:
                self._interrupted[slot] = job.id, started
                expired.append(Expiry(slot, job, True, job.soft_timeout, started))
            else:
                looks.append(started + job.soft_timeout)
        if job.size > 1 and (limit := _first_limit(job)) is not None:
            looks.append(now + limit)  # for the chunk's next item

    def forget(self, slot: WorkerSlot) -> None:
        self._interrupted.pop(slot, None)


def _first_limit(job: Job) -> float | None:
    return min(filter(None, (job.timeout, job.soft_timeout)), default=None)


LONGEST_PAUSE: Final = 0.5
"""Seconds between two looks at a worker that does not start its job: one that was stopped."""


class StartNotices:
    """
    Args:
        delay: how many seconds after its start a job is told of at the latest; None: workers
            report the start of each job that wants to be told of.
    """

    def __init__(self, delay: float | None = None) -> None:
        self.delay = delay
        self.next_look: float | None = None  # monotonic seconds; None: nothing can have started
        self._pause = 0.0

    def expect(self, slot: WorkerSlot, now: float) -> bool:
        """The first job of this slot may start now; True if that makes the next look earlier."""
        if self.delay is None or not slot.sent or not slot.ready:
            return False
        if self.next_look is not None and self.next_look <= now + self.delay:
            return False
        if not next(iter(slot.sent.values())).start_unreported:
            return False
        self._pause = self.delay
        self.next_look = now + self.delay
        return True

    def look(self, slots: Iterable[WorkerSlot], now: float) -> list[tuple[WorkerSlot, Job]]:
        """The jobs that have started and are to be told of; sets `next_look`."""
        started = []
        self.next_look = None
        for slot in slots:
            if not slot.sent:
                continue
            job = slot.sent.get(slot.running()[0])
            if job is not None and job.start_unreported:
                started.append((slot, job))
            elif job is None and slot.ready and next(iter(slot.sent.values())).start_unreported:
                self.next_look = now + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        return started
